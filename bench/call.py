"""What calls cost: small steps from Python beside an empty call, and many tensors beside one.

`python bench/call.py`
"""

from __future__ import annotations

import timeit
from typing import Any

import numpy as np

from adafactor_native import AdaFactor, Optimizer
from adafactor_native._runtime import _core
from harness import TIMED_LR, summary, time_in_turns
from markdown import duration
from models import Shape, gpt2_small
from problems import one_array
from stopwatch import stopwatch

SECONDS = 4  # each


def measure(seconds: float) -> list[dict[str, Any]]:
    """Hot: what is left of a step when its data are next to nothing."""
    times = time_in_turns(timers(), seconds)
    return [{"call": name, **summary(each.hot)} for name, each in times.items()]


def timers() -> dict[str, timeit.Timer]:
    (param,), (grad,), _ = one_array("call", (16, 16), threads=1).arrays()
    update = AdaFactor(param.shape, TIMED_LR).update
    of_gpt2: list[Shape] = [tuple(min(n, 2) for n in shape) for shape in gpt2_small().values()]
    return {
        "empty call": stopwatch("empty()", empty=_core.max_threads),
        "update of 16x16": stopwatch("update(param, grad)", update=update, param=param, grad=grad),
        "step of 16x16": step_of([(16, 16)]),
        "step of GPT-2's 148 tensors, with at most 2 elements on an axis": step_of(of_gpt2),
        "step of 2000 of 2x2": step_of([(2, 2)] * 2000),
        "step of 2000 of 32x32": step_of([(32, 32)] * 2000),
        "step of one of 64000x32": step_of([(64000, 32)]),
    }


def step_of(shapes: list[Shape]) -> timeit.Timer:
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(shape, np.float32) for shape in shapes]
    grads = [rng.standard_normal(shape, np.float32) for shape in shapes]
    step = Optimizer(params, "numpy", lr=TIMED_LR).step
    return stopwatch("step(grads)", step=step, grads=grads)


def main() -> None:
    for call in measure(SECONDS):
        print(call["call"], {name: duration(ns) for name, ns in call["ns"].items()})


if __name__ == "__main__":
    main()
