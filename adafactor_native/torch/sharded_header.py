"""What ranks say of a step of an optimizer of torch's kind, beside what they say of every sharded step."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from adafactor_native.sharding.exchange import N_HEADER, Header

N_SLOTS = N_HEADER + 3  # at the beginning of the first array of maxima
_IS_AS_BEFORE, _ASKS_FOR_STEP, _FOUND_INF = range(N_HEADER, N_SLOTS)


class Taken(enum.Enum):
    """What has become of a step."""

    step = enum.auto()
    state_only = enum.auto()  # its state was all that was asked for
    left_out = enum.auto()  # a GradScaler has found an infinity


class EndedEarly(Exception):
    """The ranks have agreed in their first exchange that the step is not taken."""

    def __init__(self, taken: Taken) -> None:
        super().__init__(taken)
        self.taken = taken


class StepHeader(Header):
    """What a rank says of a step.

    Parameters
    ----------
    t, digest, settings
        As of `Header`.
    asks_for_step : bool
        Whether this rank wants more than the state to be made. One rank that does is enough.
    found_inf : bool
        Whether a GradScaler has found an infinity here. One rank that has leaves the step out on all.
    """

    def __init__(
        self,
        t: int,
        digest: int,
        settings: Callable[[], Mapping[str, Any]],
        asks_for_step: bool,
        found_inf: bool,
    ) -> None:
        super().__init__(t, digest, settings)
        self._asks_for_step, self._found_inf = asks_for_step, found_inf

    def write(self, most: npt.NDArray[np.float64]) -> None:
        super().write(most)
        most[N_HEADER:N_SLOTS] = (1, self._asks_for_step, self._found_inf)

    def ending(self, most: npt.NDArray[np.float64]) -> Exception | None:
        if most[_FOUND_INF] > 0:
            return EndedEarly(Taken.left_out)
        if most[_ASKS_FOR_STEP] <= 0:
            return EndedEarly(Taken.state_only)
        return None


def write_changed(most: npt.NDArray[np.float64]) -> None:
    """Fill the slots of a rank that has other parameters than the ranks have agreed on."""
    most[:N_HEADER] = (1, -np.inf, -np.inf, -np.inf, -np.inf)
    most[_IS_AS_BEFORE] = 0


def some_are_as_before(most: npt.NDArray[np.float64]) -> bool:
    """Whether a rank goes on with what was agreed."""
    return bool(most[_IS_AS_BEFORE] > 0)
