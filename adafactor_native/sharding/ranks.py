"""What an optimizer knows of the other ranks."""

from __future__ import annotations

from typing import NamedTuple

from adafactor_native.sharding.channel import Channel
from adafactor_native.sharding.tensor_shard import TensorShard


class Ranks(NamedTuple):
    """What an optimizer knows of the other ranks.

    Attributes
    ----------
    channel : Channel
    shards : dict of str to TensorShard
        Of all tensors that any rank has, in the order that all ranks use.
    absent : frozenset of str
        Those of which this rank was given nothing.
    n_first : int
        Length of the first array that a step exchanges, whatever its hyper-parameters.
    """

    channel: Channel
    shards: dict[str, TensorShard]
    absent: frozenset[str]
    n_first: int
