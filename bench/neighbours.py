"""How a step fares beside busy processes: data loaders, other jobs, a second training run."""

from __future__ import annotations

import subprocess
import sys
import time
import timeit
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Any

from tqdm import tqdm

from contenders.contender import Contender
from harness import TIMED_LR, all_on, ready, settle, summary
from problems import one_array, usable_cores

COUNTS = (0, 1, 2)


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


def measure(contenders: list[Contender], seconds: float) -> list[dict[str, Any]]:
    """Time single calls, since an average over calls would hide the long ones."""
    problem = one_array("neighbours", (1024, 1024), usable_cores())
    params, grads, _ = problem.arrays()
    results = []
    with all_on(problem.threads):
        timers = {c.name: ready(c, params, grads, TIMED_LR).timer() for c in contenders}
        for count in tqdm(COUNTS, desc="busy processes", leave=False, disable=None):
            with busy_processes(count):
                for name, timer in timers.items():
                    settle(timer)
                    times = calls_within(seconds / len(timers) / len(COUNTS), timer)
                    results.append({"contender": name, "busy processes": count, **summary(times)})
    return results


def calls_within(seconds: float, timer: timeit.Timer) -> list[float]:
    end = perf_counter_ns() + seconds * 1e9
    times = []
    while perf_counter_ns() < end:
        times.append(timer.timeit(1))
    return times
