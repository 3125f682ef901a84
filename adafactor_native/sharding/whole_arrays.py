"""From the pieces of ranks to the arrays of one process, and back: nothing but copies of bits."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from adafactor_native.factoring import Axes
from adafactor_native.halves import Array
from adafactor_native.sharding.channel import Channel
from adafactor_native.sharding.pieces import Box, Piece, Shape
from adafactor_native.sharding.tensor_shard import TensorShard

LINES = ("exp_row", "exp_col")


def whole_shape(shape: Shape, axes: Axes | None, kind: str) -> Shape:
    """Return the shape of "param", or of an array of the state, of a tensor of this shape."""
    if kind not in LINES:
        return shape
    assert axes is not None
    return axes.state_shapes(shape)[LINES.index(kind)]


def piece_of(whole: Array, shape: Shape, axes: Axes | None, piece: Piece, kind: str) -> Array:
    """Return a view of a whole C-contiguous array: what a rank with this piece of the tensor has.

    It is of the local array's shape.
    """
    if isinstance(piece, Box):
        slices = piece.slices()
        if kind in LINES:
            assert axes is not None
            batch = tuple(s for axis, s in enumerate(slices) if axis not in axes)
            slices = (*batch, slices[axes[LINES.index(kind)]])
        view: Array = whole[slices] if slices else whole  # whole[()] would be a number
        return view
    if kind not in LINES:
        return whole.reshape(-1)[piece.start : piece.stop]
    rows, cols = shape[-2:]
    if kind == "exp_row":
        first, end = piece.lines(cols)
        return whole.reshape(-1)[first:end]
    first, end = piece.lines(rows * cols)
    return whole.reshape(-1, cols)[first:end]


def gather_whole(channel: Channel, array: Array, shard: TensorShard, kind: str) -> Array:
    """Return the whole array on every rank, to the bit; called by all ranks.

    Parameters
    ----------
    channel : Channel
    array : ndarray
        What this rank has, of any dtype without bfloat16's (its bits are).
    shard : TensorShard
    kind : str
        "param", or which array of the state.
    """
    shape = whole_shape(shard.shape, shard.axes, kind)
    n_words = -(-prod(shape) * array.dtype.itemsize // 8)
    words = np.zeros(n_words, np.int64)
    whole: Array = words.view(np.uint8)[: prod(shape) * array.dtype.itemsize]
    whole = whole.view(array.dtype).reshape(shape)
    here = piece_of(whole, shard.shape, shard.axes, shard.piece, kind)
    if kind in LINES:
        mine = _first_has(channel, shard, kind)
        here[mine] = array[mine]
    elif shard.speaks:
        here[...] = array
    if n_words:
        channel.all_reduce(words, "sum")  # each bit is of one rank, and zero on all others
    return whole


def _first_has(channel: Channel, shard: TensorShard, kind: str) -> Any:
    """Return which lines of this rank no rank before it has, of the local array's shape."""
    first = np.zeros(whole_shape(shard.shape, shard.axes, kind), np.int64)
    here = piece_of(first, shard.shape, shard.axes, shard.piece, kind)
    if shard.is_owner:  # a rank without elements may have means that no step has written
        here[...] = channel.size - channel.rank
    if first.size:
        channel.all_reduce(first, "max")
    return here == channel.size - channel.rank
