"""Times a statement in ns, with the garbage collector kept out."""

from __future__ import annotations

import timeit
from time import perf_counter_ns
from typing import Any


def stopwatch(statement: str, **names: Any) -> timeit.Timer:
    return timeit.Timer(statement, timer=perf_counter_ns, globals=names)
