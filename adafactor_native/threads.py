"""How many threads a step may use."""

from __future__ import annotations

import operator
import os
from pathlib import Path
from typing import Any

from adafactor_native._runtime import _core


def check_num_threads(value: Any, name: str = "num_threads", or_none: str = "") -> int:
    """Return `value` as a positive int, or raise an error that names it."""
    must_be = f"must be a positive int{or_none}"
    try:
        threads = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is a {type(value).__name__}, {must_be}") from None
    if not 0 < threads < 2**31:
        raise ValueError(f"{name} is {threads}, {must_be}")
    return threads


def set_num_threads(num_threads: int) -> None:
    """Limit the threads of every step whose optimizer names no limit of its own.

    Parameters
    ----------
    num_threads : int
        At least 1. Small arrays use fewer.

    Raises
    ------
    TypeError, ValueError
        If `num_threads` is not a positive int.
    """
    _core.set_max_threads(check_num_threads(num_threads))


def get_num_threads() -> int:
    """Return how many threads a step may use whose optimizer names no limit of its own.

    It is what `set_num_threads` was given last; before, ``ADAFACTOR_NUM_THREADS``. Without either it
    is a default: ``OMP_NUM_THREADS``, or else the number of processors that this process may use,
    its affinity within the quota of its container. A default is lowered, never raised, by the limit
    that other libraries (threadpoolctl, joblib, torch, ``omp_set_num_threads``) have set in the same
    OpenMP runtime. OpenMP keeps that limit for each calling thread.
    """
    return _core.max_threads()


def _quota_of_cgroup() -> float:
    """Return how many processors' time the control groups of this process grant."""
    quota = float("inf")
    try:
        membership = Path("/proc/self/cgroup").read_text()
    except OSError:
        return quota
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "cpu", "cpu,cpuacct", "cpuacct,cpu"):
            continue
        root = Path("/sys/fs/cgroup", controllers)
        # Inside a container its own group is the root, whatever /proc calls it.
        group = root / path.lstrip("/")
        for place in {root, group, *(p for p in group.parents if root in p.parents)}:
            quota = min(quota, _quota_in(place))
    return quota


def _quota_in(group: Path) -> float:
    try:
        if (group / "cpu.max").exists():  # version 2
            granted, period = (group / "cpu.max").read_text().split()
        else:
            granted = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        return int(granted) / int(period) if granted not in ("max", "-1") else float("inf")
    except (OSError, ValueError):
        return float("inf")


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        granted = len(os.sched_getaffinity(0))
    else:
        granted = os.cpu_count() or 1
    return max(1, min(granted, int(min(_quota_of_cgroup(), granted) + 0.5)))


def _default_threads() -> int:
    # One number for each level of nesting; what is no such list, OpenMP ignores, and so do we.
    outermost = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if outermost.isdecimal() and int(outermost) > 0:
        return int(outermost)
    return _processors()


def _set_from_environment() -> None:
    ours = os.environ.get("ADAFACTOR_NUM_THREADS")
    if ours is None:
        return _core.set_default_threads(min(_default_threads(), 2**31 - 1))
    if not ours.strip().isdecimal() or int(ours) == 0:
        raise ValueError(f"ADAFACTOR_NUM_THREADS is {ours!r}, must be a positive int")
    return _core.set_max_threads(check_num_threads(int(ours), "ADAFACTOR_NUM_THREADS"))


_set_from_environment()
