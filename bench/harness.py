"""Checks contenders against the reference, then times them in turns, in one process."""

from __future__ import annotations

import math
import random
import sys
import timeit
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

import numba
import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import adafactor_native
from cold import chill, chill_ns
from contenders.contender import Contender, Make, Steps
from problems import Array, Problem, elements

CHECKED_STEPS = 3
CHECKED_LR = 1e-2
# Of a model, the last tensor of each shape is checked, up to this size: float64 in plain NumPy would
# take minutes for all of them. Larger arrays are checked as problems of their own.
CHECKED_ELEMENTS = 1 << 22

# Nothing that is timed depends on the parameters' values as long as they stay where they are.
TIMED_LR = 1e-9

# A sample is a batch of calls at least this long, beside which reading the clock costs nothing.
SAMPLE_NS = 300_000
# A turn is a few samples in a row, after untimed calls that last longer than the idle threads of
# the contender before go on spinning: 30 ms in OpenBLAS, 15 in a libgomp left to its default.
SETTLE_NS = 40_000_000
TURN_NS = 20_000_000
FEWEST_TURNS = 4
# A call longer than this needs no settling, which is over when it has hardly begun.
SLOW_NS = 200_000_000
FEWEST_SLOW_CALLS = 2

Result = dict[str, Any]


class WrongResult(Exception):
    """A contender does not compute what it is said to compute; its speed means nothing."""


@contextmanager
def all_on(threads: int) -> Iterator[None]:
    """Give every library the same number of threads.

    They also wait alike where they share a runtime: numba and torch bring libgomp or find the one
    that is loaded, after adafactor_native has chosen for the whole process how long idle threads
    spin. (torch alone, which spins for longer, was five times slower beside a busy process.)
    """
    with ExitStack() as undo:
        undo.enter_context(threadpool_limits(threads))  # BLAS
        for get_threads, set_threads in thread_settings():
            undo.callback(set_threads, get_threads())
            set_threads(threads)
        yield


def thread_settings() -> Iterator[tuple[Callable[[], int], Callable[[int], None]]]:
    yield numba.get_num_threads, numba.set_num_threads
    yield adafactor_native.get_num_threads, adafactor_native.set_num_threads
    if torch := sys.modules.get("torch"):  # none of the contenders has loaded it otherwise
        yield torch.get_num_threads, torch.set_num_threads


def race(problem: Problem, contenders: list[Contender], seconds: float) -> list[Result]:
    """Time the contenders on one problem, for about `seconds` each."""
    contenders = [c for c in contenders if c.half == problem.half and c.takes(problem)]
    params, grads, other_grads = problem.arrays()
    with all_on(problem.threads):
        errors = verify(problem, contenders, params, [grads, other_grads])
        del other_grads
        timers = {c.name: ready(c, params, grads, TIMED_LR).timer() for c in contenders}
        times = time_in_turns(timers, seconds)
    return [
        {
            "problem": describe(problem),
            "contender": c.name,
            "error": errors[c.name],
            "bytes per parameter": c.bytes_per_param(problem),
            "sweeps": c.sweeps(problem),
            **hot_and_cold(times[c.name]),
        }
        for c in contenders
    ]


def ready(contender: Contender, params: list[Array], grads: list[Array], lr: float) -> Steps:
    steps = contender.start(params, lr)
    steps.use(grads)
    return steps


def verify(
    problem: Problem, contenders: list[Contender], params: list[Array], grads: list[list[Array]]
) -> dict[str, float]:
    """Take a few steps beside each reference in float64; return the contenders' largest errors.

    Two gradients take turns: with the same one at every step, clipping would hide a wrong state.
    The parameters are left as they were.
    """
    start = [param.copy(order="K") for param in params]
    checked = checked_tensors(problem)
    expected = {
        reference: {
            i: after_exact_steps(reference, params[i], [each[i] for each in grads]) for i in checked
        }
        for reference in {c.reference for c in contenders}
    }
    errors = {}
    for contender in contenders:
        steps = contender.start(params, CHECKED_LR)
        for i in range(CHECKED_STEPS):
            steps.use(grads[i % len(grads)])
            steps.timer().timeit(1)
        actual = steps.params()
        exact = expected[contender.reference]
        error = float(np.max([relative_error(actual[i], exact[i]) for i in checked]))
        allowed = contender.allowed_error(problem)
        if not error <= allowed:  # so that NaN is wrong too
            raise WrongResult(
                f"{contender.name} on {problem.name} is off by {error:.1e} of max|param|, "
                f"allowed is {allowed:.0e}"
            )
        errors[contender.name] = error
        for param, before in zip(params, start):
            param[...] = before
    return errors


def checked_tensors(problem: Problem) -> list[int]:
    if problem.model is None:
        return [0]
    last_of_shape = {shape: i for i, shape in enumerate(problem.shapes)}
    return [i for shape, i in last_of_shape.items() if elements(shape) <= CHECKED_ELEMENTS]


def after_exact_steps(reference: Make, param: Array, grads: list[Array]) -> Array:
    exact = param.astype(np.float64)
    exact_grads = [grad.astype(np.float64) for grad in grads]
    update = reference(exact, CHECKED_LR)
    for i in range(CHECKED_STEPS):
        update(exact, exact_grads[i % len(grads)])
    return exact


def relative_error(actual: Array, exact: Array) -> float:
    return float(np.max(np.abs(actual - exact)) / np.max(np.abs(exact)))


@dataclass
class Times:
    """Of single steps in ns: one after the other, and each from cold caches."""

    hot: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)


def time_in_turns(timers: dict[str, timeit.Timer], seconds: float) -> dict[str, Times]:
    """Times of steps, sampled in turns, so that a slow moment of the machine hits all alike.

    All who can step the same arrays, and thus the same physical pages. A turn starts with calls
    that are not timed: they bring caches and threads from the state in which the contender before
    left them to the one that a loop of this contender's own steps finds. Then come samples of such a
    loop, and as many single steps for each of which `chill` has emptied the caches.
    """
    plans = {name: Plan.of(timer, seconds * 1e9) for name, timer in timers.items()}
    times = {name: Times() for name in timers}
    order = spread_evenly({name: plan.turns for name, plan in plans.items()})
    for name in tqdm(order, desc="turns", leave=False, disable=None):
        timer, plan = timers[name], plans[name]
        if not plan.slow:
            settle(timer)
            times[name].hot += [ns / plan.calls for ns in timer.repeat(plan.samples, plan.calls)]
        for _ in range(plan.cold_samples):
            chill()
            times[name].cold.append(timer.timeit(1))
        if plan.slow:  # its data come from memory in any case
            times[name].hot = times[name].cold
    return times


def settle(timer: timeit.Timer) -> float:
    """Call, until the traces of who ran before are gone; return the fastest call's time in ns."""
    end = perf_counter_ns() + SETTLE_NS
    fastest = timer.timeit(1)
    while perf_counter_ns() < end:
        fastest = min(fastest, timer.timeit(1))
    return fastest


@dataclass(frozen=True)
class Plan:
    """How a contender spends its time. A slow one has fewer turns, not none."""

    samples: int  # in a turn
    calls: int  # in a sample
    cold_samples: int  # in a turn, of one call
    turns: int
    slow: bool

    @classmethod
    def of(cls, timer: timeit.Timer, share_ns: float) -> Plan:
        first_ns = timer.timeit(1)  # may compile
        call_ns = timer.timeit(1) if first_ns > SLOW_NS else settle(timer)
        if call_ns > SLOW_NS:
            turns = max(FEWEST_SLOW_CALLS, round(share_ns / call_ns))
            return cls(0, 1, 1, turns, slow=True)
        calls = math.ceil(SAMPLE_NS / call_ns)
        samples = math.ceil(TURN_NS / (calls * call_ns))
        cold_ns = chill_ns() + call_ns
        cold_samples = max(1, round(TURN_NS / cold_ns))
        turn_ns = max(SETTLE_NS, call_ns) + samples * calls * call_ns
        turn_ns += cold_samples * cold_ns
        turns = max(FEWEST_TURNS, round(share_ns / turn_ns))
        return cls(samples, calls, cold_samples, turns, slow=False)


def spread_evenly(counts: dict[str, int]) -> list[str]:
    """Each name `counts[name]` times, evenly from first to last, in an order without a pattern."""
    rng = random.Random(0)
    return [
        name
        for _, name in sorted(
            ((i + rng.random()) / n, name) for name, n in counts.items() for i in range(n)
        )
    ]


def hot_and_cold(times: Times) -> Result:
    """`summary` of the steps in a loop, and that of the cold ones by its name."""
    return {**summary(times.hot), "cold": summary(times.cold)}


def summary(times_ns: list[float]) -> Result:
    p10, median, p90, p99 = np.percentile(times_ns, [10, 50, 90, 99])
    quantiles = {"median": median, "p10": p10, "p90": p90, "p99": p99}
    ns = {name: round(float(value), 1) for name, value in quantiles.items()}
    return {"samples": len(times_ns), "ns": ns}


def describe(problem: Problem) -> Result:
    return {
        "name": problem.name,
        "group": problem.group,
        "tensors": len(problem.shapes),
        "size": problem.size,
        "dtype": problem.dtype,
        "layout": problem.layout,
        "threads": problem.threads,
    }
