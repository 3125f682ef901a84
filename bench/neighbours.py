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

from contenders.registry import Contender
from harness import TIMED_LR, all_on, settle, stopwatch, summary
from problems import Problem, usable_cores

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
    problem = Problem("neighbours", (1024, 1024), usable_cores())
    param, grad, _ = problem.arrays()
    results = []
    with all_on(problem.threads):
        updates = {c.name: c.make(param, TIMED_LR) for c in contenders}
        for count in tqdm(COUNTS, desc="busy processes", leave=False, disable=None):
            with busy_processes(count):
                for name, update in updates.items():
                    timer = stopwatch(update, param, grad)
                    settle(timer)
                    times = calls_within(seconds / len(updates) / len(COUNTS), timer)
                    results.append({"contender": name, "busy processes": count, **summary(times)})
    return results


def calls_within(seconds: float, timer: timeit.Timer) -> list[float]:
    end = perf_counter_ns() + seconds * 1e9
    times = []
    while perf_counter_ns() < end:
        times.append(timer.timeit(1))
    return times
