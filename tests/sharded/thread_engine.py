"""Ranks that are threads of this process, for tests of everything but the engines themselves."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_REDUCE = {"sum": np.sum, "max": np.max}


class Killed(BaseException):
    """What a rank that is killed raises, which is a thread and cannot be."""


class ThreadEngine:
    """One of `size` ranks that share a list of what each has given.

    Attributes
    ----------
    n_calls, n_bytes : int
        All-reduces so far, and the bytes of their arrays.
    """

    def __init__(self, rank: int, shared: Shared) -> None:
        self.rank = rank
        self.size = len(shared.given)
        self.n_calls = self.n_bytes = 0
        self.dies_at = None  # the number of a call that fails, as if this rank were killed
        self._shared = shared

    def all_reduce(self, array, op):
        assert array.flags.c_contiguous and array.dtype in (np.float64, np.int64)
        if self.n_calls == self.dies_at:
            while self._shared.barrier.n_waiting < self.size - 1:  # until all others wait for it
                time.sleep(1e-4)
            self._shared.barrier.abort()
            self.dies_at = None
            raise Killed
        self.n_calls += 1
        self.n_bytes += array.nbytes
        self._shared.given[self.rank] = array.copy()
        self._wait(self._shared.barrier)
        given = self._shared.given
        assert len({(each.shape, each.dtype) for each in given}) == 1, [x.shape for x in given]
        result = _REDUCE[op](given, axis=0)
        self._wait(self._shared.barrier)
        array[...] = result

    def renew(self):
        """Begin anew; every rank has to."""
        self._wait(self._shared.renewing)
        if self.rank == 0:
            self._shared.barrier.reset()
        self._wait(self._shared.renewing)

    def _wait(self, barrier):
        try:
            barrier.wait()
        except threading.BrokenBarrierError:
            raise ConnectionError("a rank is gone") from None


class Shared:
    """What the ranks of one run share."""

    def __init__(self, size: int, timeout: float = 60) -> None:
        self.given = [None] * size
        self.barrier = threading.Barrier(size, timeout=timeout)
        self.renewing = threading.Barrier(size, timeout=timeout)


def on_ranks(size, function, *arguments, engines=None, **settings):
    """Call ``function(engine, *arguments)`` on each rank; return the results in order, or raise.

    A rank that raises lets the others go: what they raise then is not shown.
    """
    if engines is None:
        shared = Shared(size)
        engines = [ThreadEngine(rank, shared) for rank in range(size)]

    def run(engine):
        try:
            return function(engine, *arguments, **settings)
        except BaseException as error:  # noqa: BLE001 (raised below)
            engine._shared.barrier.abort()
            engine._shared.renewing.abort()
            return error

    with ThreadPoolExecutor(size) as threads:
        results = list(threads.map(run, engines))
    errors = [result for result in results if isinstance(result, BaseException)]
    first = [error for error in errors if "a rank is gone" not in str(error)]
    for error in [*first, *errors]:
        raise error
    return results
