"""Our optimizer with its state in float32, where there is as much of it as of the parameters."""

from __future__ import annotations

import names
from contenders import bytes_moved, sweeps
from contenders.contender import Contender
from contenders.one_call import one_call
from contenders.plain_numpy import plain
from problems import Problem


def is_unfactored(problem: Problem) -> bool:
    return problem.group == "vector" or problem.model == "ResNet-50"


CONTENDERS = [
    Contender(
        names.FLOAT32_STATE,
        one_call(state_dtype="float32"),
        plain,
        bytes_moved.scaled_with_float32_state,
        sweeps.scaled_with_float32_state,
        takes=is_unfactored,
    )
]
