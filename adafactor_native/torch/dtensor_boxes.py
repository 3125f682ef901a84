"""Which box of a DTensor each rank has, told from its placements."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

from torch.distributed.tensor import Replicate
from torch.distributed.tensor import Shard as ShardPlacement
from torch.distributed.tensor.placement_types import _StridedShard

from adafactor_native.sharding.pieces import Box


def is_cut(placement: Any) -> bool:
    """Whether a placement cuts an axis; in some versions of torch a strided one is no Shard."""
    return isinstance(placement, (ShardPlacement, _StridedShard))


def boxes_of(shown: str, tensor: Any) -> dict[int, Box]:
    """Return the box of each rank of a DTensor's mesh.

    Parameters
    ----------
    shown : str
        What a message calls the tensor.
    tensor : DTensor

    Raises
    ------
    ValueError
        If a placement is neither a shard nor replicated.
    """
    mesh = tensor.device_mesh.mesh
    placements = tensor.placements
    shape, sizes = tuple(tensor.shape), tuple(mesh.shape)
    for placement in placements:
        if not is_cut(placement) and not isinstance(placement, Replicate):
            raise ValueError(
                f"{shown} has the placement {placement}, must be sharded or replicated: "
                "tensor.redistribute makes it so"
            )
    cuts = [_cuts(shown, axis, n, placements, sizes) for axis, n in enumerate(shape)]
    boxes = {}
    for coordinate in product(*map(range, sizes)):
        intervals = [cut[tuple(coordinate[k] for k in dims)] for dims, cut in cuts]
        box = Box(tuple(i for i, _ in intervals), tuple(j - i for i, j in intervals))
        boxes[int(mesh[coordinate])] = box
    return boxes


Cuts = tuple[tuple[int, ...], dict[tuple[int, ...], tuple[int, int]]]


def _cuts(shown: str, axis: int, n: int, placements: Sequence[Any], sizes: Sequence[int]) -> Cuts:
    """Return the mesh's dimensions that cut an axis, and by their coordinates where it is cut.

    A strided shard is one that was cut after those behind it, as ``fully_shard`` cuts what tensor
    parallelism has cut already.
    """
    dims = [
        k for k, placement in enumerate(placements) if is_cut(placement) and placement.dim == axis
    ]
    strided = [k for k in dims if isinstance(placements[k], _StridedShard)]
    for k in strided:
        behind = prod(sizes[j] for j in dims if j > k)
        if placements[k].split_factor != behind:
            raise ValueError(
                f"{shown} has the placement {placements[k]} before {behind} other cuts of axis "
                f"{axis}, must have a split_factor of as many"
            )
    order = [*(k for k in dims if k not in strided), *reversed(strided)]
    intervals = {}
    for coordinate in product(*(range(sizes[k]) for k in dims)):
        start, stop = 0, n
        for k in order:
            length = -(
                -(stop - start) // sizes[k]
            )  # as torch.chunk: the last may be shorter or empty
            start = min(start + length * coordinate[dims.index(k)], stop)
            stop = min(start + length, stop)
        intervals[coordinate] = start, stop
    return tuple(dims), intervals
