"""Checks contenders against the reference, then times them in turns, in one process."""

from __future__ import annotations

import math
import random
import timeit
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import numba
import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import adafactor_native
from contenders.registry import Contender, Update
from problems import Array, Problem

# Against the same steps in float64, relative to the largest parameter.
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
CHECKED_STEPS = 3
CHECKED_LR = 1e-2

# Nothing that is timed depends on the parameters' values as long as they stay where they are.
TIMED_LR = 1e-9

# A sample is a batch of calls at least this long, beside which reading the clock costs nothing.
SAMPLE_NS = 300_000
# A turn is a few samples in a row, after untimed calls that last longer than the idle threads of
# the contender before go on spinning: 30 ms in OpenBLAS, 15 in a libgomp left to its default.
SETTLE_NS = 40_000_000
TURN_NS = 20_000_000
FEWEST_TURNS = 5

Arrays = tuple[Array, Array, Array]
Result = dict[str, Any]


class WrongResult(Exception):
    """A contender does not compute what it is said to compute; its speed means nothing."""


@contextmanager
def all_on(threads: int) -> Iterator[None]:
    """Give every library the same number of threads.

    They also wait alike where they share a runtime: numba loads libgomp at its first parallel call,
    after adafactor_native has chosen for the whole process how long idle threads spin.
    """
    before = numba.get_num_threads(), adafactor_native.get_num_threads()
    with threadpool_limits(threads):  # BLAS
        numba.set_num_threads(threads)
        adafactor_native.set_num_threads(threads)
        try:
            yield
        finally:
            numba.set_num_threads(before[0])
            adafactor_native.set_num_threads(before[1])


def race(problem: Problem, contenders: list[Contender], seconds: float) -> list[Result]:
    """Time the contenders on one problem, for about `seconds` in all."""
    contenders = [c for c in contenders if c.takes(problem)]
    arrays = problem.arrays()
    with all_on(problem.threads):
        errors = verify(problem, contenders, arrays)
        param, grad, _ = arrays
        updates = {c.name: c.make(param, TIMED_LR) for c in contenders}
        times = time_in_turns(updates, param, grad, seconds)
    return [
        {
            "problem": describe(problem),
            "contender": c.name,
            "error": errors[c.name],
            "bytes per parameter": c.bytes_per_param(problem),
            **summary(times[c.name]),
        }
        for c in contenders
    ]


def verify(problem: Problem, contenders: list[Contender], arrays: Arrays) -> dict[str, float]:
    """Take a few steps beside the reference in float64; return each contender's largest error.

    Two gradients take turns: with the same one at every step, clipping would hide a wrong state.
    `param` is left as it was.
    """
    param, *grads = arrays
    start = param.copy(order="K")

    def after_steps(update: Update, param: Array, grads: list[Array]) -> Array:
        for i in range(CHECKED_STEPS):
            update(param, grads[i % len(grads)])
        return param

    expected = {}
    for reference in {c.reference for c in contenders}:
        exact_param = start.astype(np.float64)
        exact_grads = [grad.astype(np.float64) for grad in grads]
        update = reference(exact_param, CHECKED_LR)
        expected[reference] = after_steps(update, exact_param, exact_grads)

    errors = {}
    for contender in contenders:
        actual = after_steps(contender.make(param, CHECKED_LR), param, grads)
        exact = expected[contender.reference]
        error = float(np.max(np.abs(actual - exact)) / np.max(np.abs(exact)))
        if not error <= TOLERANCE[problem.dtype]:  # so that NaN is wrong too
            raise WrongResult(
                f"{contender.name} on {problem.name} is off by {error:.1e} of max|param|, "
                f"allowed is {TOLERANCE[problem.dtype]:.0e}"
            )
        errors[contender.name] = error
        param[...] = start
    return errors


def time_in_turns(
    updates: dict[str, Update], param: Array, grad: Array, seconds: float
) -> dict[str, list[float]]:
    """Time per call in ns, sampled in turns, so that a slow moment of the machine hits all alike.

    All step the same two arrays, and thus the same physical pages. A turn starts with calls that
    are not timed: they bring caches and threads from the state in which the contender before left
    them to the one that a loop of this contender's own steps finds.
    """
    timers = {name: stopwatch(update, param, grad) for name, update in updates.items()}
    share_ns = seconds * 1e9 / len(timers)
    plans = {name: Plan.of(timer, share_ns) for name, timer in timers.items()}
    times: dict[str, list[float]] = {name: [] for name in timers}
    order = spread_evenly({name: plan.turns for name, plan in plans.items()})
    for name in tqdm(order, desc="turns", leave=False, disable=None):
        timer, plan = timers[name], plans[name]
        settle(timer)
        times[name] += [ns / plan.calls for ns in timer.repeat(plan.samples, plan.calls)]
    return times


def stopwatch(update: Update, param: Array, grad: Array) -> timeit.Timer:
    """Counts ns, and keeps the garbage collector out."""
    names = {"update": update, "param": param, "grad": grad}
    return timeit.Timer("update(param, grad)", timer=perf_counter_ns, globals=names)


def settle(timer: timeit.Timer) -> float:
    """Call, until the traces of who ran before are gone; return the fastest call's time in ns."""
    end = perf_counter_ns() + SETTLE_NS
    fastest = timer.timeit(1)
    while perf_counter_ns() < end:
        fastest = min(fastest, timer.timeit(1))
    return fastest


@dataclass(frozen=True)
class Plan:
    """How a contender spends its share of the time. A slow one has fewer turns, not none."""

    samples: int  # in a turn
    calls: int  # in a sample
    turns: int

    @classmethod
    def of(cls, timer: timeit.Timer, share_ns: float) -> Plan:
        call_ns = settle(timer)
        calls = math.ceil(SAMPLE_NS / call_ns)
        samples = math.ceil(TURN_NS / (calls * call_ns))
        turn_ns = max(SETTLE_NS, call_ns) + samples * calls * call_ns
        return cls(samples, calls, max(FEWEST_TURNS, round(share_ns / turn_ns)))


def spread_evenly(counts: dict[str, int]) -> list[str]:
    """Each name `counts[name]` times, evenly from first to last, in an order without a pattern."""
    rng = random.Random(0)
    return [
        name
        for _, name in sorted(
            ((i + rng.random()) / n, name) for name, n in counts.items() for i in range(n)
        )
    ]


def summary(times_ns: list[float]) -> Result:
    p10, median, p90, p99 = np.percentile(times_ns, [10, 50, 90, 99])
    quantiles = {"median": median, "p10": p10, "p90": p90, "p99": p99}
    ns = {name: round(float(value), 1) for name, value in quantiles.items()}
    return {"samples": len(times_ns), "ns": ns}


def describe(problem: Problem) -> Result:
    return {
        "name": problem.name,
        "group": problem.group,
        "shape": list(problem.shape),
        "size": problem.size,
        "dtype": problem.dtype,
        "layout": problem.layout,
        "threads": problem.threads,
    }
