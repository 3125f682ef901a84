"""What Adafactors for torch do with parameters that lie in pieces: a table of errors and differences.

`python bench/sharded_peers.py` starts ranks with gloo on this machine. Each optimizer takes three steps of a
matrix, a vector and a batch of matrices, whole in one process and cut over ranks. The table has the first
line of the error, or the largest difference between both over the largest change of the parameter.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Union

import torch

import ranks
from adafactor_native.torch import Adafactor, HuggingFaceAdafactor
from markdown import table
from output import OUTPUT, write_json
from torch_layouts import LAYOUTS, layouts_for, random_tensors

SHAPES = {"matrix": (130, 70), "vector": (301,), "batch": (5, 24, 36)}
STEPS = 3
EXACT = 1e-12  # of float64

Maker = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
Outcomes = dict[str, dict[str, dict[str, Union[str, float]]]]  # by optimizer, layout and tensor


def _transformers(params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor as Theirs

    optimizer: torch.optim.Optimizer = Theirs(params)
    return optimizer


OPTIMIZERS: dict[str, Maker] = {
    "torch.optim.Adafactor": lambda params: torch.optim.Adafactor(params, lr=0.01),
    "transformers.Adafactor": _transformers,
    "adafactor_native.torch.Adafactor": lambda params: Adafactor(params, lr=0.01),
    "adafactor_native.torch.HuggingFaceAdafactor": lambda params: HuggingFaceAdafactor(params),
}


def outcomes(which: list[str], layouts: list[str]) -> Outcomes:
    """Return by optimizer, layout and tensor the first line of an error, or the relative difference."""
    warnings.simplefilter("ignore")
    return {
        optimizer: {
            layout: {name: _outcome(OPTIMIZERS[optimizer], layout, name) for name in SHAPES}
            for layout in layouts
        }
        for optimizer in which
    }


def _outcome(make: Maker, layout: str, name: str) -> str | float:
    begin = {name: random_tensors(SHAPES, 0)[name]}
    alone = torch.nn.Parameter(begin[name].clone())
    by_one = make([alone])
    sharded = LAYOUTS[layout](begin)
    try:
        by_ranks = make(sharded.params.values())
        sharded.prepare(by_ranks)
        for k in range(STEPS):
            grads = {name: random_tensors(SHAPES, 1 + k, scales=True)[name]}
            alone.grad = grads[name]
            by_one.step()
            sharded.set_grads(grads)
            by_ranks.step()
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    apart = (sharded.full()[name] - alone.detach()).abs().max()
    return float(apart / (alone.detach() - begin[name]).abs().max())


def told(outcome: str | float) -> str:
    if isinstance(outcome, str):
        return outcome.partition(":")[0]
    return "right" if outcome <= EXACT else f"off by {100 * outcome:.2g} %"


def report(found: dict[int, Outcomes]) -> str:
    header = ["optimizer", "cut", "ranks", *SHAPES]
    rows = [
        [optimizer, layout, str(n), *map(told, by_tensor.values())]
        for n, by_optimizer in found.items()
        for optimizer, by_layout in by_optimizer.items()
        for layout, by_tensor in by_layout.items()
    ]
    return table(header, sorted(rows, key=lambda row: list(OPTIMIZERS).index(row[0])))


def messages(found: dict[int, Outcomes]) -> list[str]:
    """Return the errors in full, each once."""
    every = (
        outcome
        for by_optimizer in found.values()
        for by_layout in by_optimizer.values()
        for by_tensor in by_layout.values()
        for outcome in by_tensor.values()
    )
    return list(dict.fromkeys(outcome for outcome in every if isinstance(outcome, str)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--output", type=Path, default=OUTPUT / "sharded-peers.json")
    arguments = parser.parse_args()
    found: dict[int, Outcomes] = {
        n: ranks.run(n, "sharded_peers:outcomes", list(OPTIMIZERS), layouts_for(n))[0]
        for n in arguments.ranks
    }
    print(report(found))
    print("\n".join(["", *messages(found)]))
    run: dict[str, Any] = {"shapes": SHAPES, "steps": STEPS, "found": found}
    write_json(arguments.output, run)


if __name__ == "__main__":
    main()
