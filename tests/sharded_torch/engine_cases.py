"""What test_torch_engine.py runs on ranks."""

import os
import signal
import time

import numpy as np
import torch.distributed as dist

from adafactor_native.sharding.errors import CommunicationError
from adafactor_native.sharding.torch_engine import TorchEngine


def results():
    """Return what an engine makes of a few arrays."""
    engine = TorchEngine()
    rank, size = engine.rank, engine.size
    found = {"rank": rank, "size": size}
    for op in ("sum", "max"):
        for dtype in (np.float64, np.int64):
            array = (np.arange(7) + rank).astype(dtype).reshape(7, 1)
            engine.all_reduce(array, op)
            found[op, np.dtype(dtype).name] = array.ravel().tolist()
    scalar = np.array(1.5)
    engine.all_reduce(scalar, "sum")
    found["scalar"] = float(scalar)
    empty = np.empty(0)
    engine.all_reduce(empty, "max")
    half = dist.new_group([0, 1])
    if rank < 2:
        pair = TorchEngine(half)
        array = np.ones(3)
        pair.all_reduce(array, "sum")
        found["pair"] = pair.rank, pair.size, array.tolist()
    else:
        found["pair"] = _message(lambda: TorchEngine(half))
    found["strided"] = _message(lambda: engine.all_reduce(np.ones(6)[::2], "sum"))
    found["half"] = _message(lambda: engine.all_reduce(np.ones(6, np.float16), "sum"))
    return found


def _message(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


def survivors(timeout, how):
    """Rank 1 dies or sleeps before the second exchange; return what the others saw, after how long.

    A rank that has slept begins anew with the others.
    """
    engine = TorchEngine(timeout=timeout)
    array = np.ones(1000)
    engine.all_reduce(array, "sum")
    if engine.rank == 1:
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(timeout + 2)
        engine.renew()
        engine.all_reduce(array, "sum")
        return float(array[0])
    before = time.monotonic()
    try:
        engine.all_reduce(array, "sum")
    except CommunicationError as error:
        message, seconds = str(error), time.monotonic() - before
        if how == "dies":
            return message, seconds, None
        engine.renew()
        array[:] = 3
        engine.all_reduce(array, "sum")
        return message, seconds, float(array[0])
    return None
