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
        self._reduce(array, op, self._shared, self.rank)

    def _reduce(self, array, op, shared, place):
        assert array.flags.c_contiguous and array.dtype in (np.float64, np.int64)
        if self.n_calls == self.dies_at:
            while shared.barrier.n_waiting < len(shared.given) - 1:  # until all others wait for it
                time.sleep(1e-4)
            self._shared.abort()
            self.dies_at = None
            raise Killed
        self.n_calls += 1
        self.n_bytes += array.nbytes
        shared.given[place] = array.copy()
        self._wait(shared.barrier)
        given = shared.given
        assert len({(each.shape, each.dtype) for each in given}) == 1, [x.shape for x in given]
        result = _REDUCE[op](given, axis=0)
        self._wait(shared.barrier)
        array[...] = result

    def renew(self):
        """Begin anew; every rank has to."""
        self._wait(self._shared.renewing)
        if self.rank == 0:
            self._shared.barrier.reset()
            self._shared.subsets.clear()
        self._wait(self._shared.renewing)

    def _wait(self, barrier):
        try:
            barrier.wait()
        except threading.BrokenBarrierError:
            raise ConnectionError("a rank is gone") from None


class GroupingEngine(ThreadEngine):
    """One that connects some ranks apart from the others, and counts what they exchange as its own."""

    def subset(self, ranks):
        return Subset(self, ranks, self._shared.subset(tuple(ranks)))


class Subset:
    """Some of an engine's ranks."""

    def __init__(self, engine, ranks, shared):
        self.rank, self.size = ranks.index(engine.rank), len(ranks)
        self._engine, self._shared = engine, shared

    def all_reduce(self, array, op):
        self._engine._reduce(array, op, self._shared, self.rank)


class Shared:
    """What the ranks of one run share."""

    def __init__(self, size: int, timeout: float = 60) -> None:
        self.given = [None] * size
        self.barrier = threading.Barrier(size, timeout=timeout)
        self.renewing = threading.Barrier(size, timeout=timeout)
        self.subsets: dict[tuple[int, ...], Shared] = {}
        self._timeout = timeout
        self._lock = threading.Lock()

    def subset(self, ranks):
        """Return what these ranks share apart from the others."""
        with self._lock:
            return self.subsets.setdefault(ranks, Shared(len(ranks), self._timeout))

    def abort(self):
        """Let nobody wait any more."""
        for each in (self, *self.subsets.values()):
            each.barrier.abort()


def on_ranks(size, function, *arguments, engines=None, kind=GroupingEngine, **settings):
    """Call ``function(engine, *arguments)`` on each rank; return the results in order, or raise.

    A rank that raises lets the others go: what they raise then is not shown.
    """
    if engines is None:
        shared = Shared(size)
        engines = [kind(rank, shared) for rank in range(size)]

    def run(engine):
        try:
            return function(engine, *arguments, **settings)
        except BaseException as error:  # noqa: BLE001 (raised below)
            engine._shared.abort()
            engine._shared.renewing.abort()
            return error

    with ThreadPoolExecutor(size) as threads:
        results = list(threads.map(run, engines))
    errors = [result for result in results if isinstance(result, BaseException)]
    first = [error for error in errors if "a rank is gone" not in str(error)]
    for error in [*first, *errors]:
        raise error
    return results
