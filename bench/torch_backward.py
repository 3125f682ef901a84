"""What a step of torch takes once its gradients were measured in backward, and what fused steps hold.

`python bench/torch_backward.py` writes JSON to bench/output/ and prints two tables, in half a minute. The
transformer of bench/examples is trained in turns with plain steps, with `measure_in_backward()` and with
`fuse_backward()`: what `step()` takes is counted apart from what the hooks add to backward. Then each way
trains a tower of linear layers in a process of its own, whose peak memory is read. All ways must leave
the same bits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

try:
    import torch

    from adafactor_native.torch import Adafactor
    from examples.torch_network import CONTEXT, Network, loss
    from machine import describe_run
    from markdown import mebibytes, table
    from memory import ALLOCATOR, forget_peak, process_bytes
    from output import OUTPUT, write_json
    from problems import usable_cores
except ImportError as error:
    raise SystemExit(
        f'{error}\nThis benchmark needs: pip install torch==2.13.0 && pip install ".[bench]"'
    ) from error

PLAIN, MEASURED, FUSED = "step()", "measure_in_backward()", "fuse_backward()"
WAYS = (PLAIN, MEASURED, FUSED)
CHARACTERS, BATCH = 96, 16
NEVER_CLIPS = 1e9  # of a max_grad_norm
LAYERS, WIDTH = 16, 1024  # of the tower


def main() -> None:
    parser = argparse.ArgumentParser(prog="python bench/torch_backward.py", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps")
    parser.add_argument("--output", type=Path, default=OUTPUT / "torch_backward.json")
    parser.add_argument("--memory-of", choices=WAYS, help="print what one way needs, and no more")
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(json.dumps(memory_of(arguments.memory_of)))
        return
    steps = 3 if arguments.quick else 60
    run = {
        **describe_run(),
        "times": [
            times(threads, norm, steps)
            for threads in sorted({1, usable_cores()})
            for norm in (None, NEVER_CLIPS)
        ],
        "memory": [in_own_process(way) for way in WAYS],
    }
    write_json(arguments.output, run)
    print(report(run))
    print(f"numbers: {arguments.output}")


def optimizer(way: str, model: torch.nn.Module, **options: Any) -> Adafactor:
    opt = Adafactor(model.parameters(), lr=1e-3, **options)
    if way == MEASURED:
        opt.measure_in_backward()
    if way == FUSED:
        opt.fuse_backward()
    return opt


def times(threads: int, norm: float | None, steps: int) -> dict[str, Any]:
    """Milliseconds of backward and of the step, medians of steps taken in turns."""
    torch.set_num_threads(threads)
    trained = {}
    for way in WAYS if norm is None else (PLAIN, MEASURED):
        torch.manual_seed(0)
        network = Network(CHARACTERS)
        opt = optimizer(way, network, max_grad_norm=norm, num_threads=threads)
        trained[way] = network, opt
    spent: dict[str, tuple[list[float], list[float]]] = {way: ([], []) for way in trained}
    generator = torch.Generator().manual_seed(1)
    for step in range(steps + 2):
        text = torch.randint(CHARACTERS, (BATCH, CONTEXT + 1), generator=generator)
        for way, (network, opt) in trained.items():
            opt.zero_grad()
            found = loss(network, text)
            start = perf_counter()
            found.backward()
            middle = perf_counter()
            opt.step()
            end = perf_counter()
            if step >= 2:  # the first makes the state
                spent[way][0].append(1e3 * (middle - start))
                spent[way][1].append(1e3 * (end - middle))
    bits = {way: digest(network) for way, (network, _) in trained.items()}
    if len(set(bits.values())) != 1:
        raise SystemExit(f"the ways differ: {bits}")
    return {
        "threads": threads,
        "max_grad_norm": norm,
        "steps": steps,
        "backward ms": {way: round(median(each), 4) for way, (each, _) in spent.items()},
        "step ms": {way: round(median(each), 4) for way, (_, each) in spent.items()},
        "digest": bits[PLAIN],
    }


def in_own_process(way: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--memory-of", way]
    run = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | ALLOCATOR
    )
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def memory_of(way: str) -> dict[str, Any]:
    """Bytes of the peak of a step above what is held between steps, and what was trained."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tower = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    opt = optimizer(way, tower)
    peaks = []
    for _ in range(4):
        opt.zero_grad()
        before = process_bytes("VmRSS")
        forget_peak()
        tower(torch.randn(4, WIDTH)).square().mean().backward()
        opt.step()
        peaks.append(process_bytes("VmHWM") - before)
    sizes = [sum(p.nbytes for p in layer.parameters()) for layer in tower]
    return {
        "way": way,
        "gradients": sum(sizes),
        "gradients of a layer": max(sizes),
        "peak": peaks[-1],
        "digest": digest(tower),
    }


def digest(model: torch.nn.Module) -> str:
    bits = hashlib.sha256()
    for p in model.parameters():
        bits.update(p.detach().numpy().tobytes())
    return bits.hexdigest()[:12]


def report(run: dict[str, Any]) -> str:
    rows = []
    for case in run["times"]:
        plain = case["step ms"][PLAIN]
        for way, step in case["step ms"].items():
            rows.append(
                [
                    str(case["threads"]),
                    "none" if case["max_grad_norm"] is None else f"{case['max_grad_norm']:g}",
                    way,
                    f"{case['backward ms'][way]:.2f}",
                    f"{step:.3f}",
                    f"{step / plain:.2f}",
                    case["digest"],
                ]
            )
    header = ["threads", "max_grad_norm", "way", "backward, ms", "step, ms", "of plain", "digest"]
    held = [
        [
            one["way"],
            mebibytes(one["gradients"]),
            mebibytes(one["gradients of a layer"]),
            mebibytes(one["peak"]),
            one["digest"],
        ]
        for one in run["memory"]
    ]
    of_memory = ["way", "gradients, MiB", "of a layer", "peak of a step", "digest"]
    return f"{table(header, rows)}\n\n{table(of_memory, held)}"


if __name__ == "__main__":
    main()
