"""How a step fares beside busy processes: data loaders, other jobs, a second training run."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
import timeit
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Any

from tqdm import tqdm

from contenders.contender import Contender
from harness import TIMED_LR, all_on, ready, settle, summary
from problems import Problem, one_array, usable_cores

COUNTS = (0, 1, 2)
# Every condition comes back this often, so that a slow moment of the machine is not all one's own.
ROUNDS = 6


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    spinning = [sys.executable, "-S", "-c", "while True: pass"]
    processes = [subprocess.Popen(spinning) for _ in range(count)]
    try:
        time.sleep(0.2)  # until they are past their start, which sleeps on files
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def stepped() -> Problem:
    return one_array("neighbours", (1024, 1024), usable_cores())


def measure(contenders: list[Contender], seconds: float) -> list[dict[str, Any]]:
    """Time single calls, since an average over calls would hide the long ones."""
    problem = stepped()
    params, grads, _ = problem.arrays()
    turn = seconds / (ROUNDS * len(COUNTS) * len(contenders))
    times: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    with all_on(problem.threads):
        timers = {c.name: ready(c, params, grads, TIMED_LR).timer() for c in contenders}
        rounds = list(itertools.product(range(ROUNDS), COUNTS))
        for _, count in tqdm(rounds, desc="busy processes", leave=False, disable=None):
            with busy_processes(count):
                for name, timer in timers.items():
                    settle(timer)
                    times[name, count] += calls_within(turn, timer)
    return [
        {"contender": name, "busy processes": count, **summary(times[name, count])}
        for count, name in itertools.product(COUNTS, timers)
    ]


def calls_within(
    seconds: float, timer: timeit.Timer, between: Callable[[], Any] = lambda: None
) -> list[float]:
    """Times of single calls, each after a call of `between` that is not timed."""
    end = perf_counter_ns() + seconds * 1e9
    times = []
    while perf_counter_ns() < end:
        between()
        times.append(timer.timeit(1))
    return times
