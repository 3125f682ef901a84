"""What all conversions share: arrays of others checked against ours, then taken over at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from adafactor_native.halves import is_half
from adafactor_native.optimizer import Optimizer
from adafactor_native.param_groups import Array

MakeArray = Callable[[Array], Any]
Incoming = list[tuple[Array, Array]]  # views of ours, and what they are to hold


def array_maker(array: MakeArray | None) -> MakeArray:
    if array is not None and not callable(array):
        raise TypeError(f"array is a {type(array).__name__}, must be a callable or None")
    return array or (lambda values: values)


def count_of(shown: str, value: Any) -> int:
    steps = float(np.asarray(value))
    if not steps.is_integer() or steps < 0:
        raise ValueError(f"{shown} is {steps}, must be an int >= 0")
    return int(steps)


def add_incoming(incoming: Incoming, own: Array, value: Any, shown: str) -> None:
    """Add to `incoming` an array of ours, as theirs has its axes, and what it is to hold; checked."""
    try:
        theirs = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # torch: bfloat16, other devices
        raise TypeError(f"{shown} is no array for numpy.asarray: {error}") from None
    if theirs.shape != own.shape:
        raise ValueError(f"{shown} has shape {theirs.shape}, must be {own.shape}")
    # "V": bfloat16, which is no type of NumPy's own
    if theirs.dtype.kind not in "fV" or not np.can_cast(theirs.dtype, own.dtype):
        raise TypeError(f"{shown} has dtype {theirs.dtype}, must be one that {own.dtype} can hold")
    incoming.append((own, theirs))


def dtype_there(param: Array) -> np.dtype[Any]:
    """Return the dtype that state leaves with: param's, but not one that would lose most of it."""
    return np.dtype(np.float32) if is_half(param.dtype) else param.dtype


def take_over(
    opt: Optimizer, incoming: Iterable[tuple[Array, Array]], t: int, counts: Sequence[int]
) -> None:
    opt._set_counts(t, opt.skipped, counts)
    for own, theirs in incoming:
        own[...] = theirs
