"""An engine that is watched: what fails in it is told in one way, and remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy.typing as npt

from adafactor_native.sharding.engine import Engine
from adafactor_native.sharding.errors import CommunicationError
from adafactor_native.sharding.shared_lines import Ranks


class Channel:
    """The engine of one optimizer, which is lost once an exchange has failed.

    Attributes
    ----------
    rank, size : int
    is_lost : bool
        Whether an exchange has failed since a state was loaded.
    bucket_length : int
        Tensors of a step are cut into buckets of about so many numbers, so that one is under way while
        the next is measured. The same on all ranks.
    """

    bucket_length = 1 << 20

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._engines = [engine]  # by number of the group
        self._numbers: dict[Ranks, int] = {tuple(range(engine.size)): 0}
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
        engine = self._engines[group]
        start: Any = getattr(engine, "start_all_reduce", None)
        if start is None:
            self.watch(engine.all_reduce, array, op)
            return Started(self, None)
        return Started(self, self.watch(start, array, op))

    @property
    def has_groups(self) -> bool:
        """Whether the engine can connect some of its ranks apart from the others."""
        return getattr(self._engine, "subset", None) is not None

    def number_groups(self, sets: Iterable[Ranks]) -> Mapping[Ranks, int]:
        """Return the number of each group of ranks that this rank is in, and connect the new ones.

        All ranks of a group must call it with that group, and with all others that they share and that
        are new, at once. Numbers follow one order on all ranks, in which a step begins sums over groups.
        """
        for ranks in sorted(set(sets).difference(self._numbers)):
            self._connect(ranks)
            self._numbers[ranks] = len(self._engines) - 1
        return self._numbers

    def _connect(self, ranks: Ranks) -> None:
        subset: Any = getattr(self._engine, "subset", None)
        self._engines.append(self.watch(subset, list(ranks)))

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
        del self._engines[1:]
        for ranks, number in self._numbers.items():
            if number:
                self._connect(ranks)


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
