"""Fine-tune a transformer of torch on a CPU with each optimizer, in float32 and in bfloat16.

`python bench/train.py finetune` lets a small network read Python source code, then teaches copies of it
the prose of Python's manual: with `adafactor_native.torch`, with torch's and transformers' Adafactor and
with torch's fused AdamW, on the same texts in the same order. It prints and draws the losses of text that
none has read, what an optimizer's step takes and what its state takes in memory, and writes JSON.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from examples.finetuning_plot import draw, label
from examples.prose import manual
from machine import describe_run
from markdown import count, three_digits
from output import OUTPUT, write_json

COLUMNS = ("dtype", "held-out loss", "step, ms", "model, ms", "state, bytes per parameter")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Length:
    pretraining: int  # steps
    steps: int
    evaluated_every: int  # of the steps
    rounds: int  # of steps that are timed


FULL = Length(pretraining=800, steps=200, evaluated_every=10, rounds=20)
QUICK = Length(pretraining=20, steps=10, evaluated_every=5, rounds=3)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="a few steps, which prove nothing")
    parser.add_argument(
        "--output",
        type=Path,
        default=OUTPUT / "finetuning.png",
        metavar="PNG",
        help="the picture, and JSON beside it; default: in bench/output/",
    )


def run(arguments: argparse.Namespace) -> None:
    if not find_spec("torch"):
        raise SystemExit("This example needs torch: pip install torch==2.13.0")
    quick = arguments.quick
    described = {
        "mode": "quick" if quick else "full",
        **describe_run(),
    }
    result = {**described, **fine_tuned(QUICK if quick else FULL)}
    print(table(result))
    write_json(arguments.output.with_suffix(".json"), result)
    draw(result, arguments.output)
    print(f"plot: {arguments.output}, numbers: {arguments.output.with_suffix('.json')}")


def fine_tuned(length: Length) -> dict[str, Any]:
    torch, runs = import_module("torch"), import_module("examples.finetuning_runs")
    prose = manual()
    start = runs.pretrained(prose, length.pretraining)
    trained = [
        runs.trained(start, prose, who, make, dtype, length.steps, length.evaluated_every)
        for dtype in (getattr(torch, name) for name in DTYPES)
        for who, make in runs.contestants(dtype).items()
    ]
    runs.time_in_turns(trained, prose, length.rounds)
    return {
        "parameters": sum(param.numel() for param in start.parameters()),
        "tensors": len(list(start.parameters())),
        "threads": torch.get_num_threads(),
        "trainings": [vars(each.training) for each in trained],
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['parameters']} parameters in {result['tensors']} tensors, {count(result['threads'], 'thread')}",
        "".join(
            f"{head:>{width}}" for head, width in zip(("", *COLUMNS), (50, 10, 15, 10, 11, 28))
        ),
    ]
    for each in result["trainings"]:
        lines.append(
            f"{label(each):50}{each['dtype']:>10}{each['held_out_losses'][-1]:15.3f}"
            f"{three_digits(each['step_ms']):>10}{three_digits(each['model_ms']):>11}"
            f"{three_digits(each['state_bytes'] / result['parameters']):>28}"
        )
    return "\n".join(lines)
