"""Bytes of each rank for all ranks, by nothing but all-reduces."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np

from adafactor_native.sharding.engine import Engine


def all_gather_bytes(engine: Engine, data: bytes) -> list[bytes]:
    """Return the bytes of every rank, in the order of ranks; two all-reduces, called by all ranks."""
    lengths = np.zeros(engine.size, np.int64)
    lengths[engine.rank] = len(data)
    engine.all_reduce(lengths, "sum")
    words = -(
        -lengths // 8
    )  # each rank's bytes begin at a word, so that sums only add zeros to them
    begins = np.concatenate([[0], np.cumsum(words)])
    everything = np.zeros(begins[-1], np.int64)
    here = int(begins[engine.rank]) * 8
    everything.view(np.uint8)[here : here + len(data)] = np.frombuffer(data, np.uint8)
    if everything.size:
        engine.all_reduce(everything, "sum")
    whole = everything.view(np.uint8)
    return [
        whole[int(begin) * 8 : int(begin) * 8 + int(length)].tobytes()
        for begin, length in zip(begins, lengths)
    ]


def all_gather(engine: Engine, value: Any) -> list[Any]:
    """Return what every rank gave, of what JSON can hold."""
    packed = zlib.compress(json.dumps(value).encode(), 1)
    return [json.loads(zlib.decompress(data)) for data in all_gather_bytes(engine, packed)]
