"""How a tensor is cut over the ranks, told from all pieces: its layout, and who speaks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from adafactor_native.factoring import Axes
from adafactor_native.sharding.pieces import Box, FlatRange, Piece, Shape


class Role(NamedTuple):
    """What one rank has of a tensor.

    Attributes
    ----------
    layout : str
        "batch": each rank has whole matrices, perhaps all of them or none; "rows", "cols": whole rows
        or columns of all matrices; "grid": any other boxes of a factored tensor; "flat": ranges of
        one; "elements": any cut of an unfactored one. The same on all ranks.
    speaks : bool
        Whether the rank adds its numbers to sums over all ranks: one of each set of replicas does.
    """

    layout: str
    speaks: bool


def roles_of(name: str, shape: Shape, pieces: Sequence[Piece], axes: Axes | None) -> list[Role]:
    """Return the role of each rank for a tensor.

    Parameters
    ----------
    name : str
        For the message of an error.
    shape : tuple of int
        The global one.
    pieces : sequence of Box or FlatRange
        What each rank has; without elements: nothing.
    axes : Axes or None
        The factored ones, of the global shape.

    Raises
    ------
    ValueError
        If elements are nobody's, or pieces overlap without being equal, reach beyond the tensor, or
        have different kinds. The message names ranks and pieces.
    """
    first_with: dict[Piece, int] = {}  # replicas are equal pieces; the first rank of each speaks
    for rank, piece in enumerate(pieces):
        _require_within(name, shape, rank, piece)
        if piece.size:
            first_with.setdefault(piece, rank)
    flat = {p: r for p, r in first_with.items() if isinstance(p, FlatRange)}
    boxes = {p: r for p, r in first_with.items() if isinstance(p, Box)}
    if flat and boxes:
        raise ValueError(
            f"params[{name!r}] is a FlatShard on rank {next(iter(flat.values()))} and a Shard on rank "
            f"{next(iter(boxes.values()))}, must be the same kind on all ranks"
        )
    if prod(shape) and flat:
        _require_whole_range(name, shape, flat)
    elif prod(shape):
        _require_tiling(name, shape, boxes)
    layout = _layout(shape, flat, boxes, axes)
    speaks = [piece.size > 0 and first_with[piece] == rank for rank, piece in enumerate(pieces)]
    return [Role(layout, each) for each in speaks]


def _layout(
    shape: Shape, flat: dict[FlatRange, int], boxes: dict[Box, int], axes: Axes | None
) -> str:
    if axes is None:
        return "elements"
    if flat:
        return "flat"
    cut = {axis for box in boxes for axis in range(len(shape)) if box.shape[axis] != shape[axis]}
    if cut.isdisjoint(axes):
        return "batch"
    if cut == {axes.row}:
        return "rows"
    return "cols" if cut == {axes.col} else "grid"


def _require_within(name: str, shape: Shape, rank: int, piece: Piece) -> None:
    if not piece.size:
        return
    if isinstance(piece, FlatRange):
        if piece.stop > prod(shape):
            raise ValueError(
                f"params[{name!r}] is {piece} on rank {rank}, must be within its {prod(shape)}"
            )
    elif any(i + n > total for i, n, total in zip(piece.start, piece.shape, shape)):
        raise ValueError(
            f"params[{name!r}] is {piece} on rank {rank}, must be within its shape {shape}"
        )


def _require_whole_range(name: str, shape: Shape, flat: dict[FlatRange, int]) -> None:
    """Raise a ValueError unless ranges follow one another from the first element to the last."""
    at, before = 0, None
    for piece, rank in sorted(flat.items()):
        if piece.start < at:
            assert before is not None
            raise ValueError(_overlap(name, (before, flat[before]), (piece, rank)))
        if piece.start > at:
            raise ValueError(_gap(name, str(FlatRange(at, piece.start - at))))
        at, before = piece.stop, piece
    if at < prod(shape):
        raise ValueError(_gap(name, str(FlatRange(at, prod(shape) - at))))


def _require_tiling(name: str, shape: Shape, boxes: dict[Box, int]) -> None:
    """Raise a ValueError unless boxes are disjoint and cover the whole."""
    if is_grid(shape, boxes):
        return
    every = list(boxes)
    starts = np.array([box.start for box in every]).reshape(len(every), -1)
    stops = starts + np.array([box.shape for box in every]).reshape(len(every), -1)
    for i, box in enumerate(every[:-1]):
        meets = ((starts[i + 1 :] < stops[i]) & (starts[i] < stops[i + 1 :])).all(axis=1)
        if meets.any():
            other = every[i + 1 + int(np.argmax(meets))]
            raise ValueError(_overlap(name, (box, boxes[box]), (other, boxes[other])))
    n = prod(shape) - sum(box.size for box in boxes)
    if n:
        raise ValueError(_gap(name, f"{n} of its {prod(shape)} elements"))


def is_grid(shape: Shape, boxes: Collection[Box]) -> bool:
    """Whether boxes are all cells of a grid, which needs no comparison of each with each other."""
    n_cells = 1
    for axis, total in enumerate(shape):
        cuts = sorted({(box.start[axis], box.start[axis] + box.shape[axis]) for box in boxes})
        starts, stops = [start for start, _ in cuts], [stop for _, stop in cuts]
        if [0, *stops] != [*starts, total]:
            return False
        n_cells *= len(cuts)
    return n_cells == len(boxes)


def _gap(name: str, what: str) -> str:
    return f"params[{name!r}] has no rank with {what}: shards must cover it without gaps"


def _overlap(name: str, one: tuple[Piece, int], other: tuple[Piece, int]) -> str:
    return (
        f"params[{name!r}] is {one[0]} on rank {one[1]} and {other[0]} on rank {other[1]}, which "
        "overlap: shards must be disjoint, or equal as replicas are"
    )


def empty_piece(shape: Shape, layout: str, axes: Axes | None) -> Piece:
    """Return what a rank without elements has: of rows all columns, of columns all rows."""
    if layout == "flat" or not shape:
        return FlatRange(0, 0)
    lengths = [0] * len(shape)
    if axes is not None and layout in ("rows", "cols"):
        lengths = list(shape)
        lengths[axes.row if layout == "rows" else axes.col] = 0
    return Box((0,) * len(shape), tuple(lengths))
