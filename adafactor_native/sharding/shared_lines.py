"""Which sums of rows and columns a rank has in common with which others, told from all pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from adafactor_native.factoring import Axes
from adafactor_native.sharding.layouts import is_grid
from adafactor_native.sharding.pieces import Box, FlatRange, Piece, Shape

Ranks = tuple[int, ...]


class SharedLines(NamedTuple):
    """A run of this rank's rows or columns, of all matrices, in the order of exp_row or exp_col here.

    Attributes
    ----------
    are_rows : bool
    ranks : tuple of int
        Those that have elements of these lines, this rank among them, in their order. All of them
        have the same lines of a tensor in common, in the same order.
    begin, end : int
    """

    are_rows: bool
    ranks: Ranks
    begin: int
    end: int


def shared_lines(
    shape: Shape, axes: Axes | None, layout: str, pieces: Sequence[Piece], rank: int
) -> list[SharedLines] | None:
    """Return the lines of a rank of which others have elements that it has not.

    Parameters
    ----------
    shape : tuple of int
        The global one.
    axes : Axes or None
        The factored ones.
    layout : str
        See `layouts.Role`.
    pieces : sequence of Box or FlatRange
        What each rank has.
    rank : int

    Returns
    -------
    list of SharedLines, or None
        None where ranks do not fall into groups: of boxes that are no cells of a grid, and of layouts
        that exchange other sums. The same on all ranks.
    """
    if layout == "flat":
        return list(_of_range(shape, pieces, rank))
    boxes = {piece for piece in pieces if isinstance(piece, Box) and piece.size}
    if layout != "grid" or axes is None or not is_grid(shape, boxes):
        return None
    own = pieces[rank]
    if not isinstance(own, Box) or not own.size:
        return []
    return [
        SharedLines(are_rows, ranks, 0, own.size // own.shape[summed])
        for are_rows, summed in ((True, axes.col), (False, axes.row))
        if (ranks := _along(pieces, own, summed)) is not None
    ]


def _along(pieces: Sequence[Piece], own: Box, summed: int) -> Ranks | None:
    """Return the ranks with cells in one row of cells along an axis, None if that is one cell."""

    def others(box: Box) -> tuple[Shape, Shape]:
        start, shape = box
        return start[:summed] + start[summed + 1 :], shape[:summed] + shape[summed + 1 :]

    cells: dict[Box, None] = {}
    ranks = []
    wanted = others(own)
    for rank, piece in enumerate(pieces):
        if isinstance(piece, Box) and piece.size and others(piece) == wanted:
            cells[piece] = None
            ranks.append(rank)
    return tuple(ranks) if len(cells) > 1 else None


def _of_range(shape: Shape, pieces: Sequence[Piece], rank: int) -> Iterator[SharedLines]:
    """Yield the shared lines of a range: perhaps its first and last row, and columns of two matrices."""
    own = pieces[rank]
    assert isinstance(own, FlatRange) or not own.size
    rows, cols = shape[-2:]
    if not isinstance(own, FlatRange) or not own.size:
        return
    for are_rows, length, lines in ((True, cols, 1), (False, rows * cols, cols)):
        first, end = own.lines(length)
        for line in sorted({first, end - 1}):
            ranks = _within(pieces, line * length, (line + 1) * length)
            if ranks is not None:
                yield SharedLines(
                    are_rows, ranks, (line - first) * lines, (line - first + 1) * lines
                )


def _within(pieces: Sequence[Piece], start: int, stop: int) -> Ranks | None:
    """Return the ranks with ranges that meet these elements, None if all are equal."""
    meet = {
        rank: piece
        for rank, piece in enumerate(pieces)
        if isinstance(piece, FlatRange) and piece.size and piece.start < stop and piece.stop > start
    }
    return tuple(meet) if len(set(meet.values())) > 1 else None
