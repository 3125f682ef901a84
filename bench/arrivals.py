"""What a step takes after its gradients were measured, or stepped, as they arrived.

`python bench/arrivals.py` writes JSON to bench/output/ and prints a table. One optimizer steps in
three ways in turns: by `step(grads)`; by `measure(name, grad)` of each gradient, last layer first,
and `step()`; by `step_tensor(name, grad)` of each, and `step()`. Of GPT-2 small the gradients are
there before, and come from memory. The transformer of bench/examples is trained: each gradient is taken
in the line of its backward pass that makes it, and what it takes there is counted apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

try:
    import numpy as np
    from threadpoolctl import threadpool_limits

    from adafactor_native import Optimizer
    from examples.transformer import Array, Arrays, Size, initial_params, loss_and_grads
    from machine import describe_run
    from models import gpt2_small
    from output import OUTPUT, write_json
    from problems import usable_cores
except ImportError as error:
    raise SystemExit(f'{error}\nThe benchmarks need: pip install ".[bench]"') from error

PLAIN, MEASURED, STEPPED = "step(grads)", "measure", "step_tensor"
WAYS = (PLAIN, MEASURED, STEPPED)
SIZE = Size(characters=96, context=64)
BATCH = 16

Arrived = Callable[[str, Array], object]


@dataclass
class Run:
    """Steps of one way, in seconds: what arrived gradients took, and `step` afterwards."""

    on_arrival: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python bench/arrivals.py", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="of each problem")
    parser.add_argument("--output", type=Path, metavar="JSON", default=OUTPUT / "arrivals.json")
    arguments = parser.parse_args()
    # A second thread of BLAS gains nothing on matrices of this size, and spins beside the optimizer.
    threadpool_limits(1, user_api="blas")
    results = []
    for threads in sorted({1, usable_cores()}):
        for problem, race in (("GPT-2 small", of_gpt2), ("transformer of bench", of_transformer)):
            runs = race(threads, arguments.seconds)
            results.append({"problem": problem, "threads": threads, **in_ms(runs)})
            print(line(results[-1]))
    write_json(
        arguments.output,
        {
            **describe_run(),
            "results": results,
        },
    )
    print(f"numbers: {arguments.output}")


def of_gpt2(threads: int, seconds: float) -> dict[str, Run]:
    rng = np.random.default_rng(0)
    params = {name: random(rng, shape) for name, shape in gpt2_small().items()}
    grads = {name: random(rng, shape) for name, shape in gpt2_small().items()}
    optimizer = Optimizer(params, num_threads=threads)

    def backward(arrived: Arrived) -> Arrays:
        for name in reversed(grads):
            arrived(name, grads[name])
        return grads

    return in_turns(optimizer, backward, seconds)


def of_transformer(threads: int, seconds: float) -> dict[str, Run]:
    rng = np.random.default_rng(0)
    params = initial_params(SIZE, rng)
    optimizer = Optimizer(params, factored_axes="last_two", num_threads=threads)

    def backward(arrived: Arrived) -> Arrays:
        text = rng.integers(SIZE.characters, size=(BATCH, SIZE.context + 1))
        return loss_and_grads(params, text[:, :-1], text[:, 1:], arrived)[1]

    return in_turns(optimizer, backward, seconds)


def random(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_normal(shape, np.float32)


def in_turns(
    optimizer: Optimizer, backward: Callable[[Arrived], Arrays], seconds: float
) -> dict[str, Run]:
    """Time all ways in turns, after one turn that is not counted."""
    runs = {way: Run() for way in WAYS}
    take(optimizer, backward, {way: Run() for way in WAYS})
    end = perf_counter() + seconds
    while perf_counter() < end:
        take(optimizer, backward, runs)
    return runs


def take(optimizer: Optimizer, backward: Callable[[Arrived], Arrays], runs: dict[str, Run]) -> None:
    takers: dict[str, Arrived] = {
        PLAIN: lambda name, grad: None,
        MEASURED: optimizer.measure,
        STEPPED: optimizer.step_tensor,
    }
    for way, run in runs.items():
        spent = 0.0

        def arrived(name: str, grad: Array, taker: Arrived = takers[way]) -> None:
            nonlocal spent
            start = perf_counter()
            taker(name, grad)
            spent += perf_counter() - start

        grads = backward(arrived)
        start = perf_counter()
        optimizer.step(grads if way == PLAIN else None)
        run.step.append(perf_counter() - start)
        run.on_arrival.append(spent)


def in_ms(runs: dict[str, Run]) -> dict[str, Any]:
    return {
        "steps": len(runs[PLAIN].step),
        "step ms": {way: round(1e3 * median(run.step), 4) for way, run in runs.items()},
        "on arrival ms": {way: round(1e3 * median(run.on_arrival), 4) for way, run in runs.items()},
    }


def line(result: dict[str, Any]) -> str:
    step, early = result["step ms"], result["on arrival ms"]
    parts = [f"{result['problem']}, threads {result['threads']}: step {step[PLAIN]:.3f} ms"]
    parts += [
        f"{way}: {early[way]:.3f} on arrival, then {step[way]:.3f} ({step[way] / step[PLAIN]:.2f})"
        for way in (MEASURED, STEPPED)
    ]
    return "; ".join(parts)


if __name__ == "__main__":
    main()
