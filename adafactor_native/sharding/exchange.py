"""A step over all ranks: the native phases, what they exchange, and errors that all ranks share.

What ranks have to agree on beside their sums travels in the first all-reduce that a step needs anyway:
whether one of them has an error, which step it takes, and by which hyper-parameters. Only where
something is wrong ranks speak once more, to raise the same words.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from adafactor_native.sharding.agreed_errors import error_of_some
from adafactor_native.sharding.all_gather import all_gather
from adafactor_native.sharding.channel import Channel, Started

Result_co = TypeVar("Result_co", covariant=True)
Result = TypeVar("Result")
Array = npt.NDArray[np.float64]

N_HEADER = 5  # slots at the beginning of the first array of maxima: error, t, -t, hash, -hash
_HASH_BYTES = 6  # which a float64 holds

# Errors for what a native step finds out from exchanged numbers; all others are of numbers.
_KINDS: dict[str, type[Exception]] = {"presence": ValueError, "grad_dtype": TypeError}


class ShardedStep(Protocol[Result_co]):
    """A step whose native phases wait for exchanges between them; nothing is written before `apply`.

    `fault` is None until all exchanges are over, and then alike on all ranks: None or a tuple whose first
    part is what is wrong.
    """

    def next_exchange(
        self, in_slices: bool = False
    ) -> tuple[list[tuple[Array, str, int]], int] | None:
        """Return messages to begin, and how many more must be over before the next call.

        A message is an array, "sum" or "max", and over which group of ranks, as
        `Channel.start_all_reduce` takes them. They are begun in their order, and those that must be
        over are the oldest of all that were begun. None: there are no more. With `in_slices` now and
        then there is nothing to begin or to wait for, so that what is under way can be seen to.
        """

    @property
    def fault(self) -> tuple[Any, ...] | None: ...

    def fault_text(self) -> str: ...

    def apply(self) -> Result_co: ...

    def abandon(self) -> None: ...


class Header:
    """What a rank says of a step beside its sums.

    Parameters
    ----------
    t : int
        Steps taken before.
    digest : int
        `hash_of` what `settings` returns.
    settings : callable
        Returns values of hyper-parameters at this step, which must be the same on all ranks.
    """

    def __init__(self, t: int, digest: int, settings: Callable[[], Mapping[str, Any]]) -> None:
        self.t = t
        self.digest = digest
        self.settings = settings

    def write(self, most: Array) -> None:
        """Fill the slots of a rank without an error."""
        most[:N_HEADER] = (0, self.t, -self.t, self.digest, -self.digest)

    def ending(self, most: Array) -> Exception | None:
        """Return what all ranks raise where slots of the maximum say that no step is to be taken."""
        return None


def hash_of(settings: Mapping[str, Any]) -> int:
    """Return a number that is the same on all ranks if these values are, and nearly never otherwise."""
    text = repr(sorted(settings.items())).encode()
    return int.from_bytes(blake2b(text, digest_size=_HASH_BYTES).digest(), "little")


def take_sharded_step(
    channel: Channel,
    begin: Callable[[], tuple[ShardedStep[Result], Header]],
    mute: Callable[[], Array],
    *,
    raises_faults: bool,
) -> Result:
    """Take one step on all ranks, or raise the same error on all and change nothing.

    Parameters
    ----------
    channel : Channel
    begin : callable
        Makes this rank's step, its phases up to the first exchange, with `N_HEADER` slots in it, and
        what it says of it. What it raises is raised by all.
    mute : callable
        Returns the first array of a rank whose step could not begin: as long as that of the others.
    raises_faults : bool
        Whether numbers that are not finite are an error; if not, `apply` knows what to do.

    Returns
    -------
    object
        What the step's `apply` returns.

    Raises
    ------
    CommunicationError
        If an exchange failed: nothing was written here, but others may be a step ahead.
    Exception
        What `begin` raised on the first rank that has an error.
    ValueError, TypeError
        If ranks are at different steps, or their hyper-parameters, the dtypes of their gradients or
        their choices of gradients differ.
    FloatingPointError
        If numbers are not finite.
    """
    step: ShardedStep[Result] | None = None
    error: Exception | None = None
    try:
        try:
            step, header = begin()
        except Exception as raised:  # noqa: BLE001 (all ranks raise it)
            error = raised
        if step is None:
            raise _Agreed(_with_others(channel, mute(), error))
        _exchange(channel, step, header, raises_faults)
        return step.apply()
    except _Agreed as agreed:
        if step is not None:
            step.abandon()
        raise agreed.error from error
    except BaseException:
        channel.is_lost = True  # others may go on, or wait for this rank
        if step is not None:
            step.abandon()
        raise


class _Agreed(Exception):
    """Brings an error that all ranks raise out of the exchange."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _with_others(channel: Channel, most: Array, error: Exception | None) -> Exception:
    """Tell the others in the first exchange that this rank has an error, and return what all raise."""
    most[:N_HEADER] = (1, -np.inf, -np.inf, -np.inf, -np.inf)
    channel.all_reduce(most, "max")
    return error_of_some(channel, error)


def _exchange(
    channel: Channel, step: ShardedStep[Any], header: Header, raises_faults: bool
) -> None:
    """Exchange all that a step needs, or raise what all ranks raise."""
    under_way: deque[tuple[Started, Array]] = deque()
    n_begun = n_over = 0
    in_slices = False
    while (exchange := step.next_exchange(in_slices)) is not None:
        messages, n_waits = exchange
        for array, op, group in messages:
            if n_begun == 0:
                header.write(array)
            under_way.append((channel.start_all_reduce(array, op, group), array))
            n_begun += 1
        for _ in range(n_waits):
            started, array = under_way.popleft()
            started.wait()
            if n_over == 0:
                _require_agreement(channel, header, array)
            n_over += 1
        for started, _ in under_way:
            started.test()
        in_slices = any(started.needs_tests for started, _ in under_way)
    fault = step.fault
    if fault is not None and (raises_faults or fault[0] in _KINDS):
        kind = _KINDS.get(fault[0], FloatingPointError)
        raise _Agreed(kind(f"{step.fault_text()}; nothing was changed on any rank"))


def _require_agreement(channel: Channel, header: Header, most: Array) -> None:
    """Raise on all ranks what is wrong on one, or what ranks do not agree on."""
    if most[0] != 0:
        raise _Agreed(error_of_some(channel, None))
    if most[1] != -most[2]:
        raise _Agreed(
            ValueError(
                f"t is {int(-most[2])} on one rank and {int(most[1])} on another, must be the same: "
                "load one state on all ranks"
            )
        )
    if most[3] != -most[4]:
        everyones = all_gather(channel, {key: repr(x) for key, x in header.settings().items()})
        raise _Agreed(ValueError(_difference(everyones)))
    ending = header.ending(most)
    if ending is not None:
        raise _Agreed(ending)


def _difference(everyones: Sequence[Mapping[str, str]]) -> str:
    """Return what a message says of settings that are not the same."""
    first = everyones[0]
    for rank, settings in enumerate(everyones):
        for name, value in settings.items():
            if first.get(name) != value:
                return (
                    f"{name} is {first.get(name)} on rank 0 and {value} on rank {rank}, must be the "
                    "same on all ranks"
                )
    raise AssertionError("hashes differ, and settings do not")
