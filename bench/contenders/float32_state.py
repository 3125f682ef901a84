"""Our optimizer with its state in float32, where this version has the switch."""

from __future__ import annotations

from typing import Any

import numpy as np

import names
from adafactor_native import Optimizer
from contenders import bytes_moved, sweeps
from contenders.contender import Contender
from contenders.one_call import one_call, unfactored
from contenders.plain_numpy import plain

STATE: dict[str, Any] = {"state_dtype": "float32"}


def is_known() -> bool:
    try:
        Optimizer([np.zeros(1, np.float32)], "numpy", **STATE)
    except TypeError:
        return False
    return True


CONTENDERS = (
    [
        Contender(
            names.FLOAT32_STATE,
            one_call(**STATE),
            plain,
            bytes_moved.scaled_with_float32_state,
            sweeps.scaled_with_float32_state,
            takes=unfactored,
        )
    ]
    if is_known()
    else []
)
