"""State that comes from elsewhere: looked at before the first write, then written all at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from functools import partial
from operator import length_hint, setitem
from typing import Any

import numpy as np

from adafactor_native.halves import Array

_ATTEMPTS = 5

_MEANS_OF_SQUARES = ("exp_row", "exp_col", "v")
_FINITE = (*_MEANS_OF_SQUARES, "m", "master")


def require_sound(kind: str, shown: str, array: Array) -> None:
    """Raise a ValueError where a state's array holds what no step leaves there.

    Means of squares are finite and not negative, and so is their sum; first moments and masters are
    finite. Other kinds may hold anything.
    """
    if kind not in _FINITE:
        return
    must_be = "finite"
    with np.errstate(invalid="ignore"):  # of nans that signal
        wrong = ~np.isfinite(array)
        if kind in _MEANS_OF_SQUARES:
            wrong |= array < 0
            must_be = "finite and >= 0"
    if wrong.any():
        index = tuple(int(i) for i in np.unravel_index(np.argmax(wrong), array.shape))
        at = "".join(f"[{i}]" for i in index)
        raise ValueError(f"{shown}{at} is {array[index]}, must be {must_be}")
    if kind in _MEANS_OF_SQUARES:
        with np.errstate(over="ignore"):
            total = array.sum(dtype=np.float64)
        if not np.isfinite(total):
            raise ValueError(f"{shown} has numbers whose sum is {total}, must have a finite sum")


def require_writeable(named: Mapping[str, Array]) -> None:
    for shown, array in named.items():
        if not array.flags.writeable:
            raise ValueError(f"{shown} is read-only, must be writeable")


def fill(array: Array, values: Array) -> partial[None]:
    """Return a write of all of an array, to be done by `all_at_once`.

    The values must be of its dtype and shape, and share no memory with what is written.
    """
    return partial(setitem, array, ..., values)


def all_at_once(writes: Iterable[partial[Any]]) -> None:
    """Do all writes, with no byte code between them, so that no signal handler runs there.

    CPython runs handlers of signals between the byte codes of its main thread, and there are none in
    a deque that consumes a map of partials of C functions. What can fail belongs in the first. Where
    there is no memory for the few bytes that a later one needs, it is done once more: what is written
    already was checked to go together with it.
    """
    left = list(writes)
    for attempt in range(_ATTEMPTS):
        undone = iter(left)
        try:
            deque(map(partial.__call__, undone), maxlen=0)
        except (MemoryError, SystemError):  # the latter where NumPy forgets to say which
            n_done = len(left) - length_hint(undone) - 1
            if attempt == _ATTEMPTS - 1 or (attempt == 0 and n_done <= 0):
                raise
            left = left[max(n_done, 0) :]
        else:
            return
