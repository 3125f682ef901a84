import enum
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypeVar, overload

import numpy as np
import numpy.typing as npt

from adafactor_native.gradients import Gradient

_Result = TypeVar("_Result")

version: str
compiler: tuple[str, str]
openmp: int
most_norms: int  # that Tensors.norms() returns

def built_isas() -> list[str]: ...
def available_isas() -> list[str]: ...
def running_isa() -> str: ...
def set_isa(name: str) -> bool: ...
def walks() -> dict[str, dict[str, tuple[str, bool]]]: ...
def forced_walk() -> str: ...
def force_walk(name: str) -> bool: ...
def max_threads() -> int: ...
def set_max_threads(threads: int) -> None: ...
def task_counts(rows: int, cols: int) -> tuple[int, int]: ...

class NonFinite(enum.Enum):
    # "raise" besides, which is no name in Python's grammar: NonFinite["raise"]
    skip = 1
    propagate = 2

class Rule:
    fields: ClassVar[list[str]]  # those of csrc/rule.hpp: each must be given
    def __init__(self, **values: float) -> None: ...

class Plan:
    def __init__(
        self,
        *,
        rules: Sequence[Rule],
        lr: Sequence[float],
        decay: Sequence[float],
        nonfinite: NonFinite,
        all_or_none: bool,
        max_grad_norm: float,
        skip_above: float,
        num_threads: int,
        carry_param_rms: bool,
        seed: int,
    ) -> None: ...

class Tensors:
    @overload
    def __init__(self) -> None: ...
    @overload
    def __init__(
        self,
        shape: Sequence[int],
        exp_row: npt.NDArray[Any] | None,
        exp_col: npt.NDArray[Any] | None,
        v: npt.NDArray[Any] | None,
    ) -> None: ...
    # Tensors of adafactor_native.param_groups, whose attributes are read by name
    def add(self, groups: Iterable[Iterable[object]]) -> None: ...
    def update(self, plan: Plan, param: npt.NDArray[Any], grad: Gradient) -> int: ...
    def step(
        self,
        plan: Plan,
        grads: Sequence[Gradient | None],
        grad_scale: float,
        make_report: Callable[
            [
                npt.NDArray[np.float64],
                npt.NDArray[np.float64],
                npt.NDArray[np.bool_],
                npt.NDArray[np.bool_],
                npt.NDArray[np.int64],
                npt.NDArray[np.uint8],
            ],
            _Result,
        ],
        follow: Callable[[int], None],
    ) -> _Result: ...
    def arrays(self, grads: Sequence[Gradient | None]) -> tuple[Any, ...]: ...
    def alone(self, function: Callable[[], _Result], loads: bool = False) -> _Result: ...
    @property
    def t(self) -> int: ...
    @property
    def skipped(self) -> int: ...
    def counts(self) -> npt.NDArray[np.int64]: ...
    def set_counts(self, t: int, skipped: int, counts: Sequence[int]) -> None: ...
    def norms(self) -> list[float]: ...
    def set_norms(self, norms: Sequence[float]) -> None: ...
    def forget_params(self) -> None: ...
    def state_was_seen(self) -> None: ...
