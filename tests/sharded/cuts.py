"""Ways to cut arrays over ranks: of each, which shard every rank has, or None where it has nothing."""

from __future__ import annotations

from math import prod

import numpy as np

from adafactor_native.sharding import FlatShard, Shard


def edges(n, parts, multiple=1):
    """Return where `parts` pieces of a line of n begin and end: uneven, the last perhaps empty."""
    weights = np.arange(1, parts + 1)[::-1] + 1
    cuts = np.floor(np.cumsum(weights) / weights.sum() * n / multiple) * multiple
    return [0, *(int(cut) for cut in cuts[:-1]), n]


def _boxes(shape, axis, n, multiple=1):
    at = edges(shape[axis], n, multiple)
    for start, stop in zip(at, at[1:]):
        offset = [0] * len(shape)
        offset[axis] = start
        yield (
            Shard(shape, offset),
            tuple(slice(start, stop) if a == axis else slice(None) for a in range(len(shape))),
        )


def rows(shape, n):
    return list(_boxes(shape, max(len(shape) - 2, 0), n))


def rows_of_64(shape, n):
    return list(_boxes(shape, max(len(shape) - 2, 0), n, 64))


def cols(shape, n):
    return list(_boxes(shape, len(shape) - 1, n))


def grid(shape, n):
    """Two columns of ranks where their number is even, or else one."""
    if len(shape) < 2 or n % 2:
        return rows(shape, n)
    cells = []
    for _, upper in _boxes(shape, len(shape) - 2, n // 2):
        for _, right in _boxes(shape, len(shape) - 1, 2):
            index = (*upper[:-1], right[-1])
            offset = [part.start or 0 for part in index]
            cells.append((Shard(shape, offset), index))
    return cells


def tiles(shape, n):
    """No grid: the first rank has the upper part of all columns, others share the lower part."""
    if len(shape) < 2 or n < 3:
        return rows(shape, n)
    half = shape[-2] // 2
    before = (slice(None),) * (len(shape) - 2)
    cells = [(*before, slice(0, half), slice(None))]
    at = edges(shape[-1], n - 1)
    cells += [(*before, slice(half, None), slice(i, j)) for i, j in zip(at, at[1:])]
    return [(Shard(shape, [part.start or 0 for part in cell]), cell) for cell in cells]


def batch(shape, n):
    return list(_boxes(shape, 0, n)) if len(shape) > 2 else owned(shape, n)


def flat(shape, n):
    at = edges(prod(shape), n)
    return [(FlatShard(shape, start), slice(start, stop)) for start, stop in zip(at, at[1:])]


def replicas(shape, n):
    return [(None, (slice(None),) * len(shape))] * n


def hybrid(shape, n):
    """HSDP: rows over pairs of ranks that have the same, the last alone if their number is odd."""
    pieces = rows(shape, (n + 1) // 2)
    return [pieces[rank // 2] for rank in range(n)]


def owned(shape, n):
    """ZeRO-1: one rank has all of it, others do not know of it."""
    owner = sum(shape) % n
    return [(None, (slice(None),) * len(shape)) if rank == owner else None for rank in range(n)]


def last_is_empty(shape, n):
    """Rows over all ranks but the last, which has an array without elements."""
    if n == 1:
        return replicas(shape, n)
    pieces = rows(shape, n - 1)
    axis = max(len(shape) - 2, 0)
    none = tuple(slice(0, 0) if a == axis else slice(None) for a in range(len(shape)))
    return [*pieces, (Shard(shape, [0] * len(shape)), none)]


LAYOUTS = {
    cut.__name__: cut
    for cut in (
        *(rows, rows_of_64, cols, grid, tiles, batch, flat),
        *(replicas, hybrid, owned, last_is_empty),
    )
}


def local(array, piece):
    """Return this rank's part of a whole array, a copy."""
    shard, index = piece
    whole = array.reshape(-1) if isinstance(shard, FlatShard) else array
    return np.array(whole[index], order="C")
