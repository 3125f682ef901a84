"""Cold caches: what a step finds after a forward and a backward pass, which read more than caches hold."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from time import perf_counter_ns

import numpy as np

from contenders.roof import read_whole
from problems import Array

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
LEAST_BYTES = 64 << 20  # where the machine does not say how large its caches are


def chill() -> None:
    """Read twice as much as the outer cache holds, on all threads, so that each core's own caches go too.

    It is read by numba's threads, whose OpenMP runtime is that of most contenders: the caches are
    cold after it, the threads are awake. No line is left to be written back.
    """
    read_whole(buffer())


@lru_cache(maxsize=1)
def buffer() -> Array:
    return np.ones(max(LEAST_BYTES, 2 * outer_cache_bytes()) // 4, np.float32)


def outer_cache_bytes() -> int:
    """Of the largest cache that the first core sees; 0 where that is unknown."""
    sizes = [path.read_text().strip() for path in CACHES.glob("index*/size")]
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "": 1}
    matches = [re.fullmatch(r"(\d+)([KMG]?)", size) for size in sizes]
    return max((int(m[1]) * units[m[2]] for m in matches if m), default=0)


def chill_ns() -> float:
    """What one `chill` takes on as many threads as are allowed now."""
    chill()  # may compile
    start = perf_counter_ns()
    chill()
    return float(perf_counter_ns() - start)
