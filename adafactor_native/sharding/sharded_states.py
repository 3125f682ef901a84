"""States of models that are spread over ranks: gathered, and cut to the pieces of other ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from adafactor_native.halves import Array
from adafactor_native.param_groups import KINDS
from adafactor_native.sharding.all_gather import all_gather
from adafactor_native.sharding.channel import Channel
from adafactor_native.sharding.merged_pieces import whole
from adafactor_native.sharding.ranks import Ranks
from adafactor_native.sharding.tensor_shard import TensorShard
from adafactor_native.sharding.whole_arrays import LINES, gather_whole, piece_of, whole_shape


def gathered(ranks: Ranks, local: Mapping[str, Array]) -> dict[str, Array]:
    """Return the state of one process, on every rank; called by all ranks.

    `local` is a state as this rank has it: "kind/name" and arrays, "t" and "header".
    """
    state: dict[str, Array] = {}
    for key, array in local.items():
        kind, slash, name = key.partition("/")
        if slash:
            state[key] = gather_whole(ranks.channel, array, ranks.shards[name], kind)
        else:
            state[key] = np.array(array)
    return state


def cut_to_pieces(
    ranks: Ranks, arrays: Mapping[str, Any], tensors: Sequence[Any]
) -> dict[str, Any]:
    """Return a state's arrays with this rank's part of each, for those that are of the right shape.

    `tensors` is what its header says of them. What does not fit is left as it is, for checks to name.
    """
    shapes = {
        each["name"]: each.get("shape")
        for each in tensors
        if isinstance(each, dict) and isinstance(each.get("name"), str)
    }
    cut: dict[str, Any] = {}
    for key, given in arrays.items():
        kind, slash, name = key.partition("/")
        shard = ranks.shards.get(name) if slash else None
        array = whole(given)
        if shard is not None and shapes.get(name) == list(shard.shape):
            array = _cut(array, shard, kind)
        cut[key] = array
    return cut


def _cut(array: Any, shard: TensorShard, kind: str) -> Any:
    known = kind in ("param", *KINDS) and (shard.axes is not None or kind not in LINES)
    if not known or not isinstance(array, np.ndarray):
        return array
    if array.shape != whole_shape(shard.shape, shard.axes, kind):
        return array
    in_order = np.asarray(array, order="C")
    return np.array(piece_of(in_order, shard.shape, shard.axes, shard.piece, kind))


def require_one_state(channel: Channel, header: Mapping[str, Any]) -> None:
    """Raise a ValueError on all ranks unless all are loading a state with the same header."""
    text = json.dumps(header, sort_keys=True).encode()
    digests = all_gather(channel, blake2b(text, digest_size=16).hexdigest())
    other = next((rank for rank, digest in enumerate(digests) if digest != digests[0]), None)
    if other is not None:
        raise ValueError(
            f"the state that rank {other} loads is another than that of rank 0: its header differs; "
            "all ranks must load the same"
        )
