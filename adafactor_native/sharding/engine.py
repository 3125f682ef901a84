"""What sharding needs of a library that connects ranks: three attributes."""

from __future__ import annotations

from typing import Any, Protocol, cast

import numpy.typing as npt

from adafactor_native import hyperparameters as hyper

_check_timeout = hyper.positive_or_none


class Engine(Protocol):
    """Ranks that reduce arrays together: MPI, torch.distributed, or anything with these attributes.

    Attributes
    ----------
    rank, size : int
        This process's number among `size`, from 0.

    Notes
    -----
    `all_reduce` is called with the same operation and arrays of the same length by all ranks, in the
    same order. It raises a `CommunicationError` (or any other error) where that fails, or where the
    others have not come after its timeout.

    A ``start_all_reduce(array, op)``, if there is one, begins what `all_reduce` does and returns at
    once, so that a step measures its next tensors meanwhile. Ranks begin all-reduces in the same order,
    several before the first is over, and no other than these until all are. It returns a
    handle, whose ``wait()`` returns when the array has the result and raises as `all_reduce` does; until
    then the array is kept and nobody touches it. Of an engine whose all-reduces move on only within its
    calls the handle has a ``test()`` too, which lets them, waits for nothing, and is called now and then.

    A ``subset(ranks)``, if there is one, returns such an engine of these ranks only, called by all of them and
    by no other, in one order. Over it go the sums of rows and columns of grids and flat ranges; without it
    all ranks exchange all of these.

    A ``renew()``, if there is one, is called by all ranks before a state is loaded after such an error: a
    fresh channel, on which nothing of before is left, though all-reduces were begun and never waited for.
    Then they ask for subsets again.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_reduce(self, array: npt.NDArray[Any], op: str) -> object:
        """Replace an array by the "sum" or "max" over all ranks, in place.

        `array` is C-contiguous, of float64 or int64. Every rank must get the same bits.
        """


class OneRank:
    """The engine of a process without others."""

    rank, size = 0, 1

    def all_reduce(self, array: npt.NDArray[Any], op: str) -> None:
        """Leave the array as it is: the sum and the maximum of one."""


def engine_of(comm: Any, timeout: float | None) -> Engine:
    """Return the engine of what a user gives as `comm`.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm, torch.distributed.ProcessGroup, or Engine
    timeout : float or None
        Seconds that an exchange may take; None: what the engine takes by default.

    Raises
    ------
    TypeError, ValueError
        If it is none of these.
    """
    timeout = _check_timeout("timeout", timeout)
    module = type(comm).__module__
    if module.startswith("mpi4py"):
        from adafactor_native.sharding.mpi_engine import MPIEngine

        return MPIEngine(comm, timeout)
    if any(base.__module__.startswith("torch.") for base in type(comm).__mro__):
        from adafactor_native.sharding.torch_engine import TorchEngine

        return TorchEngine(comm, timeout)
    missing = [name for name in ("rank", "size", "all_reduce") if not hasattr(comm, name)]
    if missing:
        raise TypeError(
            f"comm is a {type(comm).__name__}, must be a communicator of mpi4py, a ProcessGroup of "
            f"torch.distributed, or have rank, size and all_reduce(array, op): it has no {missing[0]}"
        )
    if timeout is not None:
        raise ValueError(
            f"timeout is {timeout}, must be None with a comm of your own, which has to keep to its own"
        )
    if not 0 <= comm.rank < comm.size:
        raise ValueError(f"comm has rank {comm.rank} of {comm.size}, must be in 0 to size - 1")
    return cast(Engine, comm)
