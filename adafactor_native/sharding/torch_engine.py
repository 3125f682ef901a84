"""Sums and maxima over the ranks of a process group of torch.distributed."""

from __future__ import annotations

import copy
import datetime
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from adafactor_native.sharding.errors import CommunicationError

_TYPES = (np.float64, np.int64)

_subsets_made: dict[tuple[int, ...], int] = {}  # of these global ranks: alike on all of them


def _by_backend(backend: Any, tensor: Any, op: Any, group: Any, async_op: bool) -> Any:
    """Begin an all-reduce as `torch.distributed.all_reduce` does, by a backend that it does not know."""
    from torch.distributed import AllreduceOptions

    options = AllreduceOptions()
    options.reduceOp = op
    return backend.allreduce([tensor], options)


class TorchEngine:
    """All-reduces of NumPy arrays in this machine's memory, by a group's backend for the CPU.

    Parameters
    ----------
    group : ProcessGroup or None
        None: the default group.
    timeout : float or None
        The seconds after which an exchange that is not over has failed. None: the group's own.

    Attributes
    ----------
    rank, size : int
        This process's place in the group, and how many there are.

    Raises
    ------
    RuntimeError
        If there is no default group.
    ValueError
        If this process is not in the group, or the group has no backend for the CPU.
    """

    def __init__(self, group: Any = None, timeout: float | None = None) -> None:
        import torch
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError(
                "torch.distributed has no process group: call "
                "torch.distributed.init_process_group('gloo') first"
            )
        self.group = dist.group.WORLD if group is None else group
        self.rank = dist.get_rank(self.group)
        self.size = dist.get_world_size(self.group)
        if self.rank < 0:
            raise ValueError("this process is not in the group, must be one of its ranks")
        backends = dist.get_backend_config(self.group)
        if "cpu:" not in str(backends):
            raise ValueError(
                f"the process group has the backends {backends}, must have one for the CPU, as "
                "init_process_group('cpu:gloo,cuda:nccl') makes it"
            )
        self._cpu = self.group._get_backend(torch.device("cpu"))
        # Over some of the ranks: by gloo's own groups only.
        self.subset = self._subset if type(self._cpu).__name__ == "ProcessGroupGloo" else None
        self._timeout = () if timeout is None else (datetime.timedelta(seconds=timeout),)
        self._new_group = dist.new_group
        self._ranks = dist.get_process_group_ranks(self.group)
        self._from_numpy = torch.from_numpy
        self._all_reduce: Any = dist.all_reduce
        self._ops = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}

    def all_reduce(self, array: npt.NDArray[Any], op: str) -> None:
        """Replace each element by the sum or maximum of all ranks' elements.

        Parameters
        ----------
        array : ndarray of float64 or int64, C-contiguous
            Of the same size and dtype on all ranks; overwritten in place.
        op : {"sum", "max"}

        Raises
        ------
        CommunicationError
            If a rank has gone, or the exchange is not over in time. What the array holds then is
            not defined.
        """
        self.start_all_reduce(array, op).wait()

    def start_all_reduce(self, array: npt.NDArray[Any], op: str) -> _Started:
        """Begin what `all_reduce` does, and return what waits for it; the group's threads do it."""
        if not array.flags.c_contiguous or array.dtype.type not in _TYPES:
            raise ValueError(
                f"array is of {array.dtype}{'' if array.flags.c_contiguous else ', strided'}, must be "
                "a C-contiguous array of float64 or int64"
            )
        if self.size == 1 or array.size == 0:
            return _Started(None, ())
        # Flat, because a 0-d array would become a tensor of another size.
        tensor = self._from_numpy(array.reshape(-1))
        try:
            work = self._all_reduce(tensor, self._ops[op], self.group, async_op=True)
        except RuntimeError as error:
            raise _failed(error) from error
        return _Started(work, self._timeout)

    def _subset(self, ranks: Sequence[int]) -> TorchEngine:
        """Return the engine of some ranks of this group; all of these must call it, in one order.

        `new_group` would name it by how many groups a process has, which ranks do not have alike, or
        wait for all ranks.
        """
        from torch.distributed import PrefixStore, ProcessGroupGloo
        from torch.distributed.distributed_c10d import _get_default_store

        some = tuple(self._ranks[rank] for rank in ranks)
        number = _subsets_made[some] = _subsets_made.get(some, 0) + 1
        store = PrefixStore(f"adafactor_native/{some}/{number}", _get_default_store())
        other = copy.copy(self)
        other.size, other.rank = len(ranks), ranks.index(self.rank)
        try:
            backend = ProcessGroupGloo(store, other.rank, other.size, self._cpu.options._timeout)
        except RuntimeError as error:
            raise CommunicationError(
                f"the ranks {list(some)} could not be connected: {error}"
            ) from error
        other._all_reduce = partial(_by_backend, backend)
        return other

    def renew(self) -> None:
        """Talk by a new group of the same ranks from now on; all of them must call it.

        What an exchange that was not over in time may still send reaches nobody then.
        """
        self.group = self._new_group(self._ranks, use_local_synchronization=True)


class _Started:
    """An all-reduce that has begun: a work of torch's, which has the array, or None if it is over."""

    def __init__(self, work: Any, timeout: tuple[datetime.timedelta, ...]) -> None:
        self._work = work
        self._timeout = timeout

    def wait(self) -> None:
        """Wait until the array has the result; raises as `TorchEngine.all_reduce`."""
        if self._work is None:
            return
        try:
            self._work.wait(*self._timeout)
        except RuntimeError as error:
            raise _failed(error) from error


def _failed(error: RuntimeError) -> CommunicationError:
    return CommunicationError(
        f"an all-reduce between the ranks failed ({str(error).splitlines()[0]}): a rank has gone, "
        "hangs or did not take part; load the state on all ranks before the next step"
    )
