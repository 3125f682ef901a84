"""What all ranks say of their model once, and whether it is one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from adafactor_native._runtime import _core
from adafactor_native.halves import Array
from adafactor_native.param_groups import GivenGroup, axes_by, is_in
from adafactor_native.sharding.pieces import Box, FlatRange, Piece, as_json, from_json
from adafactor_native.sharding.shards import FlatShard, Shard
from adafactor_native.sharding.tensor_shard import TensorShard

Described = dict[str, Any]


class AgreedTensor(NamedTuple):
    """A tensor that some rank has, as all ranks agree.

    Attributes
    ----------
    shard : TensorShard
    dtype, copy_dtype : str or None
        Names of dtypes; None without a copy.
    decays : bool
    """

    shard: TensorShard
    dtype: str
    copy_dtype: str | None
    decays: bool


def describe_model(
    groups: Sequence[GivenGroup], shards: Mapping[str, Any], settings: Mapping[str, Any]
) -> Described:
    """Return what one rank says of its model, as JSON has it.

    Raises
    ------
    TypeError, ValueError
        If `shards` has unknown names, or a shard does not fit the local array.
    """
    names = {name for group in groups for name in group.arrays}
    if not isinstance(shards, Mapping):
        raise TypeError(
            f"shards is a {type(shards).__name__}, must be a mapping from names to Shard or FlatShard"
        )
    unknown = next((name for name in shards if name not in names), None)
    if unknown is not None:
        raise ValueError(f"shards has {unknown!r}, must have names of params only")
    return {
        "version": _core.version,
        "settings": {key: repr(value) for key, value in settings.items()},
        "groups": [
            {
                "switches": _comparable(group.switches),
                "tensors": [
                    _describe_tensor(name, param, group, shards)
                    for name, param in group.arrays.items()
                ],
            }
            for group in groups
        ],
    }


def agreed_groups(
    everyones: Sequence[Described], rank: int, groups: Sequence[GivenGroup]
) -> list[list[AgreedTensor]]:
    """Return the tensors of each group over all ranks, in the order that all ranks use.

    `groups` are this rank's, of the same switches as all others.

    Raises
    ------
    ValueError
        The same on all ranks: if versions, settings, groups, hyper-parameters, or a tensor's dtype or
        shape differ, or the order of tensors does.
    """
    first = everyones[0]
    _require_alike("the version of adafactor_native", [each["version"] for each in everyones])
    for key in first["settings"]:
        _require_alike(key, [each["settings"][key] for each in everyones])
    _require_alike("the number of groups", [len(each["groups"]) for each in everyones])
    _require_one_group_each(everyones)
    agreed = []
    for g in range(len(first["groups"])):
        described = [each["groups"][g] for each in everyones]
        for key in described[0]["switches"]:
            values = [group["switches"][key] for group in described]
            _require_alike(f"{key} of group {g}", values)
        by_rank = [{tensor["name"]: tensor for tensor in group["tensors"]} for group in described]
        names = _merged_order(by_rank)
        agreed.append([_agreed(name, by_rank, rank, groups[g].switches) for name in names])
    return agreed


def _describe_tensor(
    name: str, param: Array, group: GivenGroup, shards: Mapping[str, Any]
) -> Described:
    copy = group.copies.get(name)
    shape, piece = _piece_of(name, param, shards.get(name))
    return {
        "name": name,
        "shape": list(shape),
        "piece": as_json(piece),
        "dtype": param.dtype.name,
        "copy": None if copy is None else copy.dtype.name,
        "decays": is_in(group.switches["weight_decay_mask"], name),
    }


def _piece_of(name: str, param: Array, shard: Any) -> tuple[tuple[int, ...], Piece]:
    """Return the global shape, and which piece of it an array is."""
    if shard is None:
        return param.shape, Box((0,) * param.ndim, param.shape)
    if isinstance(shard, Shard):
        if len(shard.shape) != param.ndim:
            raise ValueError(
                f"params[{name!r}] has shape {param.shape}, must have {len(shard.shape)} axes as the "
                f"shape {shard.shape} of its Shard"
            )
        return shard.shape, Box(shard.offset, param.shape)
    if isinstance(shard, FlatShard):
        if param.ndim != 1 or not param.flags.c_contiguous:
            raise ValueError(
                f"params[{name!r}] has shape {param.shape} and strides {param.strides}, must be a "
                "contiguous array of one axis, as it is a FlatShard"
            )
        return shard.shape, FlatRange(shard.start, param.size)
    raise TypeError(f"shards[{name!r}] is a {type(shard).__name__}, must be a Shard or a FlatShard")


def _comparable(switches: Mapping[str, Any]) -> dict[str, str]:
    """Return switches as text that is equal where they are; callables are compared at each step."""
    return {
        name: "a callable" if callable(value) else repr(value)
        for name, value in switches.items()
        if name != "weight_decay_mask"  # what matters of it is told of each tensor
    }


def _require_alike(what: str, values: Sequence[Any]) -> None:
    for rank, value in enumerate(values):
        if value != values[0]:
            raise ValueError(
                f"{what} is {values[0]} on rank 0 and {value} on rank {rank}, must be the same on all "
                "ranks"
            )


def _require_one_group_each(everyones: Sequence[Described]) -> None:
    found: dict[str, tuple[int, int]] = {}
    for rank, each in enumerate(everyones):
        for g, group in enumerate(each["groups"]):
            for tensor in group["tensors"]:
                name = tensor["name"]
                other_group, other = found.setdefault(name, (g, rank))
                if other_group != g:
                    raise ValueError(
                        f"params[{name!r}] is in group {other_group} on rank {other} and in group {g} "
                        f"on rank {rank}, must be in the same on all ranks"
                    )


def _merged_order(by_rank: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return all names, in an order in which those of each rank have its own order."""
    merged = list(by_rank[0])
    known = set(merged)
    for own in by_rank[1:]:
        position = 0
        if not known.issuperset(own):
            for name in own:
                if name in known:
                    position = merged.index(name) + 1
                else:
                    merged.insert(position, name)
                    known.add(name)
                    position += 1
    at = {name: i for i, name in enumerate(merged)}
    for rank, own in enumerate(by_rank):
        names = list(own)
        for one, other in zip(names, names[1:]):
            if at[one] > at[other]:
                raise ValueError(
                    f"params[{one!r}] comes before params[{other!r}] on rank {rank} and behind it on "
                    "another, must be in the same order on all ranks"
                )
    return merged


def _agreed(
    name: str, by_rank: Sequence[Mapping[str, Described]], rank: int, switches: Mapping[str, Any]
) -> AgreedTensor:
    found = {r: own[name] for r, own in enumerate(by_rank) if name in own}
    first_rank, first = next(iter(found.items()))
    for r, tensor in found.items():
        for key, what in (
            *(("shape", "global shape"), ("dtype", "dtype"), ("copy", "dtype of the copy")),
            ("decays", "choice by weight_decay_mask"),
        ):
            if tensor[key] != first[key]:
                a, b = (tuple(x) if isinstance(x, list) else x for x in (first[key], tensor[key]))
                raise ValueError(
                    f"the {what} of params[{name!r}] is {a} on rank {first_rank} and {b} on rank {r}, "
                    "must be the same on all ranks"
                )
    shape = tuple(first["shape"])
    nothing = FlatRange(0, 0)
    pieces = [from_json(found[r]["piece"]) if r in found else nothing for r in range(len(by_rank))]
    shard = TensorShard(name, shape, pieces, rank, axes_by(switches, name, shape))
    return AgreedTensor(shard, first["dtype"], first["copy"], first["decays"])
