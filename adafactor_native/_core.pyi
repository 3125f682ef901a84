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
def set_default_threads(threads: int) -> None: ...
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

class Part:
    def __init__(
        self,
        shape: Sequence[int],
        start: Sequence[int],
        layout: str,
        speaks: bool = True,
        shared: Sequence[tuple[bool, int, int, int]] | None = None,
    ) -> None: ...
    @property
    def shape(self) -> list[int]: ...
    @property
    def start(self) -> list[int]: ...
    @property
    def speaks(self) -> bool: ...

class ShardedStep:
    def next_exchange(
        self, in_slices: bool = False
    ) -> tuple[list[tuple[npt.NDArray[np.float64], str, int]], int] | None: ...
    @property
    def fault(self) -> tuple[str, int, int, float] | None: ...
    def fault_text(self) -> str: ...
    def apply(self) -> Any: ...
    def abandon(self) -> None: ...

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
        follow: Callable[[int], npt.NDArray[Any] | None],
        measured_scale: float = 1.0,
        params_are_new: bool = False,
    ) -> _Result: ...
    def begin_sharded_step(
        self,
        plan: Plan,
        grads: Sequence[Gradient | None],
        grad_scale: float,
        make_report: Callable[..., Any],
        follow: Callable[[int], npt.NDArray[Any] | None],
        n_header_max: int,
        n_header_sum: int,
        measured_scale: float = 1.0,
        exact: bool = False,
        params_are_new: bool = False,
        bucket_length: int = 1 << 20,
    ) -> ShardedStep: ...
    def mute_round(
        self,
        plan: Plan,
        n_header_max: int,
        exact: bool = False,
        bucket_length: int = 1 << 20,
    ) -> npt.NDArray[np.float64]: ...
    def arrays(self, grads: Sequence[Gradient | None]) -> tuple[Any, ...]: ...
    def measure(
        self,
        plan: Plan,
        position: int,
        grad: Gradient,
        grad_scale: float | None,
        follow: Callable[[int], npt.NDArray[Any] | None],
        params_are_new: bool,
    ) -> None: ...
    def discard_measured(self) -> None: ...
    def measured(self) -> list[int | None]: ...
    @property
    def has_measured(self) -> bool: ...
    @property
    def waits(self) -> bool: ...
    def step_tensor(
        self,
        plan: Plan,
        position: int,
        grad: Gradient,
        grad_scale: float,
        make_report: Callable[..., Any],
        follow: Callable[[int], npt.NDArray[Any] | None],
        params_are_new: bool = False,
    ) -> Any: ...
    @property
    def is_open(self) -> bool: ...
    def given(self) -> list[bool]: ...
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

class TorchReader:
    def __init__(
        self,
        tensor_type: type,
        parameter_type: type,
        strided: object,
        exchange: object,
        dtypes: dict[str, object],
    ) -> None: ...
    @property
    def uses_exchange(self) -> bool: ...

class TorchNames:
    def __init__(
        self,
        *,
        step: str,
        row: str,
        col: str,
        full: str,
        moment: str,
        master: str,
        low: str,
        rms_param: str | None,
        keeps_axes: bool,
        counts_with_tensors: bool,
    ) -> None: ...

class TorchGroup:
    def __init__(
        self,
        *,
        rule: Rule,
        factored_axes: str,
        min_dim_size_to_factor: int,
        masters: str | None,
        has_moment: bool,
        has_float32_state: bool,
    ) -> None: ...

class TorchOptions:
    def __init__(
        self,
        *,
        nonfinite: NonFinite,
        max_grad_norm: float,
        num_threads: int,
        seed: int,
        grad_scale: float,
        t: int,
        only_looks: bool,
    ) -> None: ...

class TorchMeasured:
    def __init__(self) -> None: ...
    def drop_gone(self) -> None: ...
    def __len__(self) -> int: ...
    @property
    def n_bytes(self) -> int: ...
    @property
    def n_taken(self) -> int: ...  # by steps that found nothing changed

class TorchSteps:
    def __init__(self, reader: TorchReader, names: TorchNames) -> None: ...
    # groups: (TorchGroup, lr, decay, params, position of the first, names or None, grads or None)
    # Returns: stepped, or None if nothing was done because of what follows; (group, param) whose
    # state must be made or changed; (group, param) that are no plain tensors; the norm of all
    # gradients; whether a step was left out.
    def step(
        self,
        groups: Sequence[tuple[Any, ...]],
        state: dict[Any, Any],
        options: TorchOptions,
        measured: TorchMeasured | None = None,
    ) -> tuple[list[Any] | None, list[tuple[int, Any]], list[tuple[int, Any]], float, bool]: ...
    def measure(
        self,
        groups: Sequence[tuple[Any, ...]],
        state: dict[Any, Any],
        options: TorchOptions,
        measured: TorchMeasured,
    ) -> None: ...
