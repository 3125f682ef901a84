"""Parts of a global array as numbers: a box, or a range of its elements in C order."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple, Union

Shape = tuple[int, ...]


class Box(NamedTuple):
    """A box of a global array: where it begins, and how long it is on each axis."""

    start: Shape
    shape: Shape

    @property
    def size(self) -> int:
        return prod(self.shape)

    def slices(self) -> tuple[slice, ...]:
        """Return what picks it out of the global array."""
        return tuple(slice(i, i + n) for i, n in zip(self.start, self.shape))

    def __str__(self) -> str:
        return "[" + ", ".join(f"{i}:{i + n}" for i, n in zip(self.start, self.shape)) + "]"


class FlatRange(NamedTuple):
    """A range of a global array's elements in C order."""

    start: int
    length: int

    @property
    def size(self) -> int:
        return self.length

    @property
    def stop(self) -> int:
        return self.start + self.length

    def lines(self, cols: int) -> tuple[int, int]:
        """Return which lines of `cols` elements it touches: the first, and the first behind them."""
        if self.length == 0:
            return 0, 0
        return self.start // cols, (self.stop - 1) // cols + 1

    def __str__(self) -> str:
        return f"[{self.start}:{self.stop}] of its elements in C order"


Piece = Union[Box, FlatRange]


def as_json(piece: Piece) -> list[Any]:
    """Return a piece as JSON has it."""
    if isinstance(piece, Box):
        return ["box", list(piece.start), list(piece.shape)]
    return ["flat", piece.start, piece.length]


def from_json(given: list[Any]) -> Piece:
    """Return what `as_json` wrote."""
    kind, start, extent = given
    return Box(tuple(start), tuple(extent)) if kind == "box" else FlatRange(start, extent)
