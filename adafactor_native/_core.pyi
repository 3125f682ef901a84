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
