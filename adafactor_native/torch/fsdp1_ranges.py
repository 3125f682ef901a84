"""Which range of a parameter each rank has under FullyShardedDataParallel."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from adafactor_native.sharding.pieces import FlatRange, Shape


class FlatParam(NamedTuple):
    """A parameter of which each rank has a range, in C order.

    Attributes
    ----------
    shape : tuple of int
        Of all of it.
    ranges : dict of int to FlatRange
        By global rank.
    """

    shape: Shape
    ranges: dict[int, FlatRange]


def flat_params(module: torch.nn.Module) -> list[tuple[torch.Tensor, FlatParam | None]]:
    """Return the parameters of a module that FSDP1 has cut, each with the ranges of all ranks.

    None stands for those of one that it has wrapped and left whole.

    Raises
    ------
    ValueError
        If the module has no such parameters, was wrapped without ``use_orig_params=True``, or its ranks
        are not those of the default group: hybrid sharding.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel

    found: list[tuple[torch.Tensor, FlatParam | None]] = []
    for unit in FullyShardedDataParallel.fsdp_modules(module):
        handle: Any = unit._handle
        if handle is None:
            continue
        flat = handle.flat_param
        if flat._params is None:
            raise ValueError(
                "the module is wrapped with use_orig_params=False, must be with True: one flat "
                "parameter has lost the shapes that are factored"
            )
        ranks = dist.get_process_group_ranks(handle.process_group)
        if handle.uses_sharded_strategy and len(ranks) != dist.get_world_size():
            raise ValueError(
                f"the module is sharded over {len(ranks)} of {dist.get_world_size()} ranks, must be over "
                "all: fully_shard with a mesh of two axes replicates as well"
            )
        places = [
            start
            for (start, _), is_padding in zip(
                handle._get_flat_param_offsets(), flat._is_padding_mask
            )
            if not is_padding
        ]
        length = flat._sharded_size.numel()
        for param, shape, start in zip(flat._params, flat._shapes, places):
            if not handle.uses_sharded_strategy:  # with one rank, or by choice
                found.append((param, None))
                continue
            n = shape.numel()
            ranges = {rank: _range_of(k, length, start, n) for k, rank in enumerate(ranks)}
            found.append((param, FlatParam(tuple(shape), ranges)))
    if not found:
        raise ValueError(
            "the module has no parameter of FullyShardedDataParallel: only of that the parts must be told"
        )
    return found


def _range_of(k: int, length: int, start: int, n: int) -> FlatRange:
    """Return what the k-th rank has of a parameter of n elements that begins at `start` in the flat one."""
    first = min(max(k * length - start, 0), n)
    return FlatRange(first, min(max((k + 1) * length - start, 0), n) - first)
