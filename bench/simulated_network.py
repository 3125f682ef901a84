"""A rank of a network that is not there: its all-reduces take time, and nothing of the processor's.

A rank begins its all-reduces on a `Wire`, which carries one after the other and does not touch the
numbers: they are right if the other rank has zeros. What a step does meanwhile is the package's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from exchange_costs import Network

Made = TypeVar("Made")
Array = npt.NDArray[Any]

_REDUCE: dict[str, Any] = {"sum": np.sum, "max": np.max}


class Wire:
    """One end of a network that carries a message at a time.

    Attributes
    ----------
    network : Network or None
        A message is over its latency after the wire has carried its bytes. None: at once.
    """

    def __init__(self, network: Network | None = None) -> None:
        self.network = network
        self._free_at = 0.0

    def begin(self, array: Array) -> Arrival:
        now = time.perf_counter()
        if self.network is None:
            return Arrival(now)
        self._free_at = max(now, self._free_at) + array.nbytes * self.network.s_per_byte
        return Arrival(self._free_at + self.network.latency_s)


class Arrival:
    """When a message has arrived, in seconds of `time.perf_counter`."""

    def __init__(self, at: float) -> None:
        self._at = at

    def wait(self) -> None:
        while (left := self._at - time.perf_counter()) > 0:
            time.sleep(left)


class OneOfTwo:
    """One of two ranks, threads that agree on a model; its steps' exchanges are those of a wire."""

    size = 2

    def __init__(self, rank: int, meeting: Barrier, given: list[Array]) -> None:
        self.rank = rank
        self.wire = Wire()
        self._meeting = meeting
        self._given = given

    def all_reduce(self, array: Array, op: str) -> None:
        self._given[self.rank] = array.copy()
        self._meeting.wait()
        array[...] = _REDUCE[op](self._given, axis=0)
        self._meeting.wait()

    def start_all_reduce(self, array: Array, op: str) -> Arrival:
        return self.wire.begin(array)


def on_two_ranks(make: Callable[[OneOfTwo], Made]) -> tuple[OneOfTwo, Made]:
    """Make an optimizer on two ranks, and return the first one's engine and optimizer."""
    meeting, given = Barrier(2, timeout=60), [np.empty(0), np.empty(0)]
    engines = [OneOfTwo(rank, meeting, given) for rank in range(2)]
    with ThreadPoolExecutor(2) as threads:
        made = list(threads.map(make, engines))
    return engines[0], made[0]
