"""What the ranks of an optimizer have agreed that they step together, and what they do where it changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adafactor_native.sharding.agreed_errors import error_of_some, first_error, together
from adafactor_native.sharding.all_gather import all_gather
from adafactor_native.sharding.channel import Channel
from adafactor_native.sharding.exchange import hash_of
from adafactor_native.torch.sharded_header import some_are_as_before, write_changed
from adafactor_native.torch.state import Kept

_NEUTRAL = -np.finfo(np.float64).max


@dataclass(frozen=True)
class Layout:
    """What the arrays that ranks exchange go by.

    Attributes
    ----------
    sums : {"fast", "exact"}
    params : tuple of tuple of str
        Of each parameter in pieces, in the order of the step, what it is called and what else it is.
    kept : tuple of Kept
        What each group's parameters keep.
    """

    sums: str
    params: tuple[tuple[str, str], ...]
    kept: tuple[Kept, ...]

    def described(self) -> dict[str, str]:
        """Return what is compared, as a message tells it."""
        said = {"sums": self.sums}
        for k, (name, what) in enumerate(self.params):
            said[f"parameter {k} in pieces"] = f"{name!r}, {what}"
        for place, kept in enumerate(self.kept):
            said[f"what group {place} keeps"] = repr(kept)
        return said


class Agreement:
    """Sees to it that arrays of all ranks are of one length, whatever a user has done on some of them.

    Of arrays of different lengths a backend makes nonsense, hangs or ends the process. So the ranks
    compare their layouts in their first step, and a rank that finds its own changed says so in an
    array of the length that the others still have.
    """

    def __init__(self) -> None:
        self._agreed: tuple[Layout, int] | None = None

    @property
    def n_first(self) -> int:
        """The length of the first array that a step exchanges."""
        assert self._agreed is not None
        return self._agreed[1]

    def mute(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Return the first array of a rank that cannot step: as long as that of the others."""
        return np.full(self.n_first, _NEUTRAL)

    def forget(self) -> None:
        """Compare again at the next step; said by all ranks."""
        self._agreed = None

    def reach(
        self,
        channel: Channel,
        layout: Callable[[], Layout],
        n_first: Callable[[], int],
        connect: Callable[[], None],
    ) -> None:
        """Agree with all ranks, or raise the same on all of them; without an exchange where nothing changed.

        Parameters
        ----------
        channel : Channel
        layout : callable
            Returns this rank's; what it raises will be raised by the step that is then begun, or is
            raised by all at once where nothing was agreed on before.
        n_first : callable
            Returns the length of the first array.
        connect : callable
            Called by all ranks once they have agreed: connects what their sums go over.

        Raises
        ------
        ValueError
            If ranks differ. The message says in what.
        """
        if self._agreed is not None:
            before = self._agreed[0]
            try:
                now = layout()
            except Exception:  # noqa: BLE001 (the step's own begin raises it, and so do all ranks)
                return
            if now == before:
                return
            self._tell_of_change(channel, before, now)
            self._agreed = None
        made, length = together(channel, lambda: (layout(), n_first()))
        described = made.described()
        digest = hash_of(described)
        if any(other != digest for other in all_gather(channel, digest)):
            raise ValueError(_difference(all_gather(channel, described)))
        connect()
        self._agreed = made, length

    def _tell_of_change(self, channel: Channel, before: Layout, now: Layout) -> None:
        """Return where all ranks have changed."""
        most = self.mute()
        write_changed(most)
        channel.all_reduce(most, "max")
        if some_are_as_before(most):
            raise error_of_some(channel, ValueError(_change(before, now)))
        error = first_error(channel, None)
        if error is not None:
            raise error


def _change(before: Layout, now: Layout) -> str:
    old, new = before.described(), now.described()
    for key in (*new, *old):
        if new.get(key) != old.get(key):
            return (
                f"{key} is {new.get(key, 'gone')}, was {old.get(key, 'none')} at the last step and is so "
                "still on other ranks, must be changed on all ranks alike"
            )
    raise AssertionError("layouts differ, and their descriptions do not")


def _difference(everyones: Sequence[Mapping[str, str]]) -> str:
    first = everyones[0]
    for rank, described in enumerate(everyones):
        for key in (*first, *described):
            if first.get(key) != described.get(key):
                return (
                    f"{key} is {first.get(key, 'none')} on rank 0 and {described.get(key, 'none')} on rank "
                    f"{rank}, must be the same on all ranks"
                )
    raise AssertionError("hashes differ, and descriptions do not")
