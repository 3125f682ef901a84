"""What a user says of a local array: which part of a larger one it is."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Shard:
    """A local array that is a box of a global one: rows, columns, a cell of a grid, some of a batch.

    Parameters
    ----------
    shape : sequence of int
        Of the global array.
    offset : sequence of int
        Where the local array begins in it, an index for each axis; its end follows from the local
        array's own shape. A box without elements may lie anywhere.

    Raises
    ------
    TypeError, ValueError
        If these are not ints >= 0, or not as many.

    Examples
    --------
    >>> from adafactor_native.sharding import Shard
    >>> Shard(shape=(4096, 1024), offset=(1024, 0))
    Shard(shape=(4096, 1024), offset=(1024, 0))
    """

    shape: Shape
    offset: Shape

    def __init__(self, shape: Sequence[int], offset: Sequence[int]) -> None:
        object.__setattr__(self, "shape", _counts("shape", shape))
        object.__setattr__(self, "offset", _counts("offset", offset))
        if len(self.offset) != len(self.shape):
            raise ValueError(
                f"offset has {len(self.offset)} numbers, must have {len(self.shape)}: one for each "
                "axis of shape"
            )


@dataclass(frozen=True)
class FlatShard:
    """A local array of one axis that is a range of a global array in C order, as FSDP1 and ZeRO cut.

    Parameters
    ----------
    shape : sequence of int
        Of the global array.
    start : int
        How many of the global array's elements, in C order, are before the first of the range. Its
        end follows from the local array's length. A range without elements may lie anywhere.

    Raises
    ------
    TypeError, ValueError
        If these are not ints >= 0.

    Examples
    --------
    >>> from adafactor_native.sharding import FlatShard
    >>> FlatShard(shape=(4096, 1024), start=1_000_000)
    FlatShard(shape=(4096, 1024), start=1000000)
    """

    shape: Shape
    start: int

    def __init__(self, shape: Sequence[int], start: int) -> None:
        object.__setattr__(self, "shape", _counts("shape", shape))
        object.__setattr__(self, "start", _counts("start", [start])[0])


def _counts(name: str, values: Any) -> Shape:
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise TypeError(f"{name} is a {type(values).__name__}, must be a sequence of ints >= 0")
    try:
        counts = tuple(operator.index(value) for value in values)
    except TypeError:
        raise TypeError(f"{name} is {values!r}, must be of ints >= 0") from None
    if any(not 0 <= count < 2**63 for count in counts):
        raise ValueError(f"{name} is {counts}, must be of ints >= 0 and < 2**63")
    return counts
