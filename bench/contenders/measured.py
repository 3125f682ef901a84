"""The step that is left when each gradient was measured as it came."""

from __future__ import annotations

import timeit
from functools import partial
from typing import Any

import names
from contenders import bytes_moved, sweeps
from contenders.contender import Contender
from contenders.one_call import OneCall
from contenders.plain_numpy import plain
from problems import Problem
from stopwatch import stopwatch


class MeasuredOneCall(OneCall):
    """Measuring is not timed: it takes place while the gradient is made."""

    def timer(self) -> timeit.Timer:
        optimizer: Any = self._optimizer
        return stopwatch(
            "step(grads)",
            setup="for name, grad in named: measure(name, grad)",
            step=optimizer.step,
            grads=self._grads,
            named=list(zip(optimizer.names, self._grads)),
            measure=optimizer.measure,
        )


def is_long(problem: Problem) -> bool:
    """One step is a sample of its own: each needs its measuring before it."""
    return problem.model == "GPT-2 small"


CONTENDERS = [
    Contender(
        names.MEASURED,
        partial(MeasuredOneCall, {}),
        plain,
        bytes_moved.floor,
        sweeps.of_apply,
        takes=is_long,
    )
]
