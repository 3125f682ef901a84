"""One tensor over all ranks: which part of it each has, and what this rank keeps of its state."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from math import prod

from adafactor_native._runtime import _core
from adafactor_native.factoring import Axes
from adafactor_native.sharding.channel import Channel
from adafactor_native.sharding.layouts import empty_piece, roles_of
from adafactor_native.sharding.pieces import Box, Piece, Shape
from adafactor_native.sharding.shared_lines import Ranks, SharedLines, shared_lines


class TensorShard:
    """What this rank has of a tensor.

    Parameters
    ----------
    name : str
        For the messages of errors.
    shape : tuple of int
        The global one.
    pieces : sequence of Box or FlatRange
        What each rank has; without elements: nothing.
    rank : int
        This one.
    axes : Axes or None
        The factored ones, of the global shape.

    Attributes
    ----------
    piece : Box or FlatRange
        What this rank has. One without elements has the lengths that its layout asks for.
    layout : str
    speaks : bool
        See `layouts.Role`.
    is_owner : bool
        Whether this rank has to say if there is a gradient: it has elements, or nobody has.
    group_of : mapping of tuple of int to int, or None
        Numbers of the groups of ranks that this rank is in, as `Channel.number_groups` gives them. None, as
        at first: sums of lines go over all ranks.

    Raises
    ------
    ValueError
        If pieces do not fit together; see `layouts.roles_of`.
    """

    def __init__(
        self, name: str, shape: Shape, pieces: Sequence[Piece], rank: int, axes: Axes | None
    ) -> None:
        self.name = name
        self.shape = shape
        self.pieces = pieces
        self.rank = rank
        self.axes = axes
        self.layout, self.speaks = roles_of(name, shape, pieces, axes)[rank]
        own = pieces[rank]
        self.is_owner = own.size > 0 or prod(shape) == 0
        self.group_of: Mapping[Ranks, int] | None = None
        self.piece: Piece = own if self.is_owner else empty_piece(shape, self.layout, axes)
        ndim = len(shape)
        if axes is not None and self.layout == "flat" and axes != (ndim - 2, ndim - 1):
            raise ValueError(
                f"params[{name!r}] is a FlatShard and its axes {tuple(axes)} are factored, must be the "
                "last two, or it must be a Shard"
            )

    def without_elements(self) -> TensorShard:
        """Return what a rank has of the same tensor that has nothing of it."""
        other = copy.copy(self)
        other.piece = empty_piece(self.shape, self.layout, self.axes)
        other.speaks = other.is_owner = False
        other.group_of = None
        return other

    @property
    def local_shape(self) -> Shape:
        """The shape of the local array."""
        return self.piece.shape if isinstance(self.piece, Box) else (self.piece.length,)

    def part(self) -> _core.Part:
        """Return what the extension is told."""
        start = self.piece.start if isinstance(self.piece, Box) else [self.piece.start]
        shared = None
        if self.group_of is not None and self.shared_lines is not None:
            shared = [
                (lines.are_rows, self.group_of[lines.ranks], lines.begin, lines.end)
                for lines in self.shared_lines
            ]
        return _core.Part(list(self.shape), list(start), self.layout, self.speaks, shared)

    @cached_property
    def shared_lines(self) -> list[SharedLines] | None:
        """What `shared_lines.shared_lines` returns for this rank."""
        return shared_lines(self.shape, self.axes, self.layout, self.pieces, self.rank)

    def state_shapes(self) -> tuple[Shape, Shape]:
        """Return the shapes of exp_row and exp_col here.

        Of a box they are those of an array of its shape. Of a flat range exp_row has the lines that it
        touches, of all matrices in one, (lines,), and exp_col all columns of the matrices that it
        touches, (matrices, cols).
        """
        assert self.axes is not None
        if isinstance(self.piece, Box):
            return self.axes.state_shapes(self.piece.shape)
        rows, cols = self.shape[-2:]
        first, end = self.piece.lines(cols)
        first_matrix, end_matrix = self.piece.lines(rows * cols)
        return (end - first,), (end_matrix - first_matrix, cols)


def number_lines(channel: Channel, shards: Iterable[TensorShard]) -> None:
    """Connect the groups of ranks whose sums some tensors need, and number these; called by all ranks.

    Where the engine connects no groups the sums go over all ranks.
    """
    new = [shard for shard in shards if shard.group_of is None]
    if new and channel.has_groups:
        sets = [lines.ranks for shard in new for lines in shard.shared_lines or ()]
        numbers = channel.number_groups(sets)
        for shard in new:
            shard.group_of = numbers
