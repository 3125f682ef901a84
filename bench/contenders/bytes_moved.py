"""Bytes per parameter that an algorithm has to move, for a shape and the size of its items.

What two sweeps read and write is the least known for Adafactor. It is the same for all who compute
the same, so that those who move more bytes show fewer GB/s.
"""

from __future__ import annotations

from collections.abc import Callable

from models import Shape

FLOAT32, FLOAT64 = 4, 8


def unscaled(shape: Shape, itemsize: int) -> int:
    """grad twice, param read and written; without factors, the float64 v twice and written."""
    return 4 * itemsize + (0 if len(shape) == 2 else 3 * FLOAT64)


def scaled(shape: Shape, itemsize: int) -> int:
    return unscaled(shape, itemsize) + itemsize  # RMS(param): one more read


def scaled_with_float32_state(shape: Shape, itemsize: int) -> int:
    return 5 * itemsize + (0 if len(shape) == 2 else 3 * FLOAT32)


def carried(shape: Shape, itemsize: int) -> float:
    """RMS(param) is carried over from the step before, and a sixteenth of it checked."""
    return unscaled(shape, itemsize) + itemsize / 16


def adafactor(shape: Shape, itemsize: int) -> int:
    """As the other libraries define it: v is of the parameter's type, and only vectors have one."""
    return 5 * itemsize if len(shape) >= 2 else 8 * itemsize


def keras_adafactor(shape: Shape, itemsize: int) -> int:
    """The second moment is part of the state, and written, even where it is factored."""
    return 6 * itemsize if len(shape) >= 2 else 8 * itemsize


def adamw(shape: Shape, itemsize: int) -> int:
    """One sweep: grad read; param and both moments read and written."""
    return 7 * itemsize


def of_types(param: int, grad: int, copy: int = 0, moment: int = 0) -> Callable[[Shape, int], int]:
    """`scaled` of a matrix: grad twice, param twice and written, a copy written, a first moment read
    and written; bytes of each.

    What is kept beside a half-precision param counts as part of it, wherever it is read and written.
    """
    return lambda shape, itemsize: 2 * grad + 3 * param + copy + 2 * moment


def in_halves(bytes_of: Callable[[Shape, int], int]) -> Callable[[Shape, int], int]:
    return lambda shape, itemsize: bytes_of(shape, 2)


def floor(shape: Shape, itemsize: int) -> int:
    return 3 * itemsize


def read(shape: Shape, itemsize: int) -> int:
    return itemsize
