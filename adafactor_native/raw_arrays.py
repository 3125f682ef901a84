"""The bytes of one array, to a file and from it, without a copy where its memory is in C order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BufferedReader
from typing import Any

import numpy as np

from adafactor_native.halves import Array

_PIECE = 1 << 20


def write_bytes(array: Array, write: Callable[[memoryview], Any]) -> None:
    """Write an array's elements in C order; an array in another order is copied for that."""
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    for start in range(0, len(raw), _PIECE):
        write(raw[start : start + _PIECE])


def read_bytes(file: BufferedReader, n_bytes: int, cut: str) -> Array:
    """Return the next bytes of a file, known to be there by its size, or raise ValueError(cut)."""
    raw = np.empty(n_bytes, np.uint8)
    view = raw.data
    done = 0
    while done < n_bytes:
        n = file.readinto(view[done:])
        if not n:
            raise ValueError(cut)
        done += n
    return raw


def shaped(raw: Array, dtype: np.dtype[Any], shape: Sequence[int], shown: str) -> Array:
    """Return bytes as an array of a dtype and shape, known to be as many."""
    try:
        return raw.view(dtype).reshape(shape)
    except (ValueError, OverflowError):  # too many axes, or zeros beside numbers beyond memory
        raise ValueError(f"{shown} has a shape that no array can have") from None


def n_elements(shape: Sequence[int]) -> int:
    """Return the product, in Python's integers: it may be larger than any memory."""
    n = 1
    for length in shape:
        n *= length
    return n
