"""Peak memory of a step above its arrays: `python bench/memory.py CONTENDER` prints it in bytes.

Each contender gets a process of its own, where nobody else's garbage can serve it as memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from timeit import Timer
from typing import Any

from tqdm import tqdm

from contenders.contender import Contender
from contenders.registry import CONTENDERS
from harness import TIMED_LR, ready
from problems import Problem, one_array, usable_cores

# Large enough that the allocator takes every array from the system, and gives it back.
PROBLEM = one_array("memory", (4096, 4096), usable_cores())
WARM_UP = one_array("memory", (512, 512), usable_cores())
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def measure(contenders: list[Contender]) -> list[dict[str, Any]]:
    results = []
    for contender in tqdm(contenders, desc="peak memory", leave=False, disable=None):
        run = subprocess.run(
            [sys.executable, __file__, contender.name],
            env={**os.environ, **ALLOCATOR},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        results.append(
            {"contender": contender.name, "problem": PROBLEM.name, "peak bytes": int(run.stdout)}
        )
    return results


def peak_of_first_step(contender: Contender) -> int:
    """The first step of an optimizer, in a process where another has started threads and compiled.

    What an optimizer allocates when it is made but first writes to in a step counts, too.
    """
    first_step(contender, WARM_UP).timeit(1)
    step = first_step(contender, PROBLEM)
    forget_peak()
    before = process_bytes("VmRSS")
    step.timeit(1)
    return process_bytes("VmHWM") - before


def first_step(contender: Contender, problem: Problem) -> Timer:
    params, grads, _ = problem.arrays()
    return ready(contender, params, grads, TIMED_LR).timer()


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def process_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, kilobytes = line.partition(":")
        if name == field:
            return int(kilobytes.split()[0]) * 1024
    raise LookupError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    print(peak_of_first_step(next(c for c in CONTENDERS if c.name == sys.argv[1])))
