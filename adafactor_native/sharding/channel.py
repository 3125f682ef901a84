"""An engine that is watched: what fails in it is told in one way, and remembered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from adafactor_native.sharding.engine import Engine
from adafactor_native.sharding.errors import CommunicationError


class Channel:
    """The engine of one optimizer, which is lost once an exchange has failed.

    Attributes
    ----------
    rank, size : int
    is_lost : bool
        Whether an exchange has failed since a state was loaded.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.rank = engine.rank
        self.size = engine.size
        self.is_lost = False

    def all_reduce(self, array: npt.NDArray[Any], op: str) -> None:
        """Reduce by the engine; any error is a `CommunicationError`, after which the channel is lost."""
        self.watch(self._engine.all_reduce, array, op)

    def start_all_reduce(self, array: npt.NDArray[Any], op: str, group: int = 0) -> Started:
        """Begin to reduce an array, which is the engine's until `Started.wait` returns.

        An engine without a `start_all_reduce` of its own reduces it here and now.

        Parameters
        ----------
        array : ndarray of float64 or int64, C-contiguous
        op : {"sum", "max"}
        group : int
            Which of this rank's groups of ranks: 0 is all of them.
        """
        if group != 0:
            raise ValueError(f"group is {group}, must be 0: all ranks")
        start: Any = getattr(self._engine, "start_all_reduce", None)
        if start is None:
            self.all_reduce(array, op)
            return Started(self, None)
        return Started(self, self.watch(start, array, op))

    def watch(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call what belongs to an exchange; any error is a `CommunicationError`, and loses the channel."""
        try:
            return call(*arguments)
        except BaseException as error:
            self.is_lost = True
            if isinstance(error, CommunicationError) or not isinstance(error, Exception):
                raise
            raise CommunicationError(
                f"rank {self.rank} of {self.size} could not reduce an array: {error}"
            ) from error

    def require_not_lost(self) -> None:
        """Raise a CommunicationError after an exchange that failed."""
        if self.is_lost:
            raise CommunicationError(
                "an exchange between ranks has failed, and some may be a step ahead: load a state on all "
                "ranks, by opt.load_state_dict, before the next step"
            )

    def renew(self) -> None:
        """Begin anew, with nothing left of exchanges that have failed; all ranks must call it."""
        renew: Any = getattr(self._engine, "renew", None)
        if renew is not None:
            renew()


class Started:
    """An all-reduce that a channel has begun.

    Parameters
    ----------
    channel : Channel
    handle : object or None
        The engine's; None if it is over already.
    """

    def __init__(self, channel: Channel, handle: Any) -> None:
        self._channel = channel
        self._handle = handle

    @property
    def needs_tests(self) -> bool:
        """Whether it moves on only within calls of its engine."""
        return hasattr(self._handle, "test")

    def test(self) -> None:
        """Let it move on, if it needs that."""
        if self.needs_tests:
            self._channel.watch(self._handle.test)

    def wait(self) -> None:
        """Wait until the array has the result; errors are those of `Channel.all_reduce`."""
        if self._handle is not None:
            self._channel.watch(self._handle.wait)
            self._handle = None
