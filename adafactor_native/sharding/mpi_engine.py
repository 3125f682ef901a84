"""All-reduces by mpi4py, which do not wait for ever."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from adafactor_native.sharding.errors import CommunicationError

DEFAULT_TIMEOUT = 1800.0  # seconds: what torch gives its process groups

# Elements of one message: MPI counts in int, and a long message would hide for how long it hangs.
_MOST_ELEMENTS = 1 << 24

# A wait yields the processor so often, then sleeps: ranks may be more than processors.
_YIELDS = 200
_SLEEP = 50e-6


class MPIEngine:
    """Ranks of an MPI communicator.

    The engine speaks on a duplicate of the communicator, so that its messages are never mistaken for
    the program's. To make one is collective. MPI itself has no timeouts: the engine starts an
    all-reduce, and polls. What it does in vain goes on in the background, so that after a timeout the
    duplicate is of no use any more; `renew` makes another.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    timeout : float or None
        Seconds that an exchange may take. None: `DEFAULT_TIMEOUT`.
    """

    def __init__(self, comm: Any, timeout: float | None = None) -> None:
        from mpi4py import MPI

        if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
            raise TypeError(f"comm is a {type(comm).__name__}, must be an intracommunicator of MPI")
        self._mpi = MPI
        self._given = comm
        self._timeout = DEFAULT_TIMEOUT if timeout is None else timeout
        self._operations = {"sum": MPI.SUM, "max": MPI.MAX}
        self._types = {"f": MPI.DOUBLE, "i": MPI.INT64_T}
        # Requests that are not over, with the memory that MPI may still write to.
        self._under_way: dict[int, tuple[Any, Any]] = {}
        self._comm: Any = None
        self.rank = comm.Get_rank()
        self.size = comm.Get_size()
        self.renew()

    def renew(self) -> None:
        """Speak on a new duplicate of the communicator from now on; all ranks must call it."""
        old, self._comm = self._comm, None
        comm, request = self._translated(self._given.Idup)
        self._under_way[id(request)] = request, comm
        self.wait_for(request, "to duplicate the communicator")
        comm.Set_errhandler(self._mpi.ERRORS_RETURN)
        self._comm = comm
        some_are_lost = np.array([old is None], np.int64)
        self.all_reduce(some_are_lost, "max")
        if not some_are_lost[0]:  # nothing is under way on the old one
            old.Free()

    def subset(self, ranks: Sequence[int]) -> MPIEngine:
        """Return the engine of some ranks; all of these must call it, in one order.

        MPI waits here without a timeout, so they have to come from a common exchange.
        """
        assert self._comm is not None
        other = copy.copy(self)
        group = self._comm.Get_group().Incl(ranks)
        comm = self._translated(lambda: self._comm.Create_group(group))
        comm.Set_errhandler(self._mpi.ERRORS_RETURN)
        other.rank, other.size = comm.Get_rank(), comm.Get_size()
        other._comm = comm  # what is under way is kept by both, for longer than this may live
        return other

    def all_reduce(self, array: npt.NDArray[Any], op: str) -> None:
        """Replace an array of float64 or int64 by its sum or maximum over all ranks."""
        self.start_all_reduce(array, op).wait()

    def start_all_reduce(self, array: npt.NDArray[Any], op: str) -> _Started:
        """Begin what `all_reduce` does, and return what waits for it, and what lets it move on."""
        parts = []
        if self.size > 1:
            if self._comm is None:
                raise CommunicationError(
                    "this rank has lost the others, and exchanges nothing until a state is loaded"
                )
            flat = array.reshape(-1)
            for begin in range(0, flat.size, _MOST_ELEMENTS):
                parts.append(self._start(flat[begin : begin + _MOST_ELEMENTS], op))
        return _Started(self, parts)

    def _start(self, part: npt.NDArray[Any], op: str) -> Any:
        buffer = [part, part.size, self._types[part.dtype.kind]]
        request = self._translated(
            lambda: self._comm.Iallreduce(self._mpi.IN_PLACE, buffer, self._operations[op])
        )
        self._under_way[id(request)] = request, part
        return request

    def is_over(self, request: Any) -> bool:
        """Let all that is under way move on, and return whether this is over."""
        if not self._translated(request.Test):
            return False
        self._under_way.pop(id(request), None)
        return True

    def wait_for(self, request: Any, doing: str) -> None:
        """Poll until a request is over; a CommunicationError after the timeout, and nothing works then."""
        began = time.monotonic()
        polls = 0
        try:
            while not self.is_over(request):
                polls += 1
                if polls <= _YIELDS:
                    os.sched_yield()
                    continue
                waited = time.monotonic() - began
                if waited > self._timeout:
                    raise CommunicationError(
                        f"rank {self.rank} of {self.size} waited {waited:.3g} s {doing}, the timeout "
                        f"is {self._timeout:g} s: another rank is gone, hangs, or is busy elsewhere"
                    )
                time.sleep(_SLEEP)
        except BaseException:
            self._comm = None
            raise

    def _translated(self, call: Any) -> Any:
        try:
            return call()
        except self._mpi.Exception as error:
            raise CommunicationError(
                f"rank {self.rank} of {self.size}: MPI failed: {error.Get_error_string()}"
            ) from error


class _Started:
    """An all-reduce that has begun, as one request of MPI's for each part of the array."""

    def __init__(self, engine: MPIEngine, requests: list[Any]) -> None:
        self._engine = engine
        self._requests = requests

    def test(self) -> None:
        """Let it move on: MPI does nothing between its calls."""
        if self._requests and self._engine.is_over(self._requests[0]):
            del self._requests[0]

    def wait(self) -> None:
        """Wait until the array has the result; raises as `MPIEngine.all_reduce`."""
        while self._requests:
            self._engine.wait_for(self._requests[0], "to reduce an array")
            del self._requests[0]
