from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

version: str
compiler: tuple[str, str]
openmp: int

class Progress:
    def __init__(self, t: int = 0, skipped: int = 0) -> None: ...
    def forget_param(self) -> None: ...
    @property
    def t(self) -> int: ...
    @property
    def skipped(self) -> int: ...

class Setup:
    def __init__(
        self,
        exp_row: npt.NDArray[Any] | None,
        exp_col: npt.NDArray[Any] | None,
        v: npt.NDArray[Any] | None,
        lr: float,
        beta2: float,
        eps: float,
        clip_threshold: float,
        scale_parameter: bool,
        nonfinite: int,
        num_threads: int,
        carry_param_rms: bool,
        stochastic: bool,
        seed: int,
    ) -> None: ...

def update(
    progress: Progress,
    setup: Setup,
    param: npt.NDArray[Any],
    grad: npt.NDArray[Any] | np.floating[Any],
) -> None: ...
def built_isas() -> list[str]: ...
def available_isas() -> list[str]: ...
def running_isa() -> str: ...
def set_isa(name: str) -> bool: ...
def max_threads() -> int: ...
def set_max_threads(threads: int) -> None: ...

class Rule:
    def __init__(
        self,
        *,
        beta2: float,
        decay_rate: float,
        decay_offset: int,
        bias_correction: bool,
        eps_squares: float,
        eps_means: float,
        eps_root: float,
        root_floor: float,
        mean_floor: float,
        clip_threshold: float,
        per_matrix: bool,
        scale_parameter: bool,
        eps_scale: float,
        scale_after_decay: bool,
        relative_step: bool,
        warmup: float,
        beta1: float,
        momentum_of_u: bool,
        decay_by_step: float,
        maximize: bool,
        stochastic: bool,
        shared_t: bool,
    ) -> None: ...

class Model:
    def __init__(self, carry_param_rms: bool = False) -> None: ...
    def add(
        self,
        name: str,
        param: npt.NDArray[Any],
        copy: npt.NDArray[Any] | None,
        exp_row: npt.NDArray[Any] | None,
        exp_col: npt.NDArray[Any] | None,
        v: npt.NDArray[Any] | None,
        m: npt.NDArray[Any] | None,
        master: npt.NDArray[Any] | None,
        low: npt.NDArray[Any] | None,
        row_axis: int,
        col_axis: int,
        group: int,
        decays: bool,
    ) -> None: ...
    def step(
        self,
        rules: Sequence[Rule],
        lr: Sequence[float],
        decay: Sequence[float],
        grads: Sequence[npt.NDArray[Any] | np.floating[Any] | None],
        grad_scale: float,
        max_grad_norm: float,
        nonfinite: int,
        atomic: bool,
        num_threads: int,
        seed: int,
    ) -> tuple[npt.NDArray[np.float64], float, npt.NDArray[np.bool_]]: ...
    @property
    def t(self) -> int: ...
    @property
    def skipped(self) -> int: ...
    def counts(self) -> npt.NDArray[np.int64]: ...
    def set_counts(self, t: int, skipped: int, counts: npt.NDArray[np.int64]) -> None: ...
    def forget_params(self) -> None: ...
