"""Who takes part, what each is checked against, and how many bytes its step has to move.

To add a contender, write it in a file of its own and list its `update(param, grad)` here; if its
threads are set by a call of its library, add that to `harness.all_on`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import names
from adafactor_native import AdaFactor
from contenders import roof
from contenders.numba_adafactor import NumbaAdaFactor
from contenders.numpy_in_place import NumpyInPlace
from contenders.seed import SeedAdaFactor
from problems import Array, Problem

Update = Callable[[Array, Array], Any]  # update(param, grad) changes param in place


@dataclass(frozen=True)
class Contender:
    name: str
    make: Callable[[Array, float], Update]  # for this parameter and learning rate
    reference: Callable[[Array, float], Update]  # the same in plain NumPy, called with float64
    bytes_per_param: Callable[[Problem], int]
    roof: bool = False  # not an optimizer, and only for arrays without gaps

    def takes(self, problem: Problem) -> bool:
        return not (self.roof and problem.layout == "slice")


def step_bytes(problem: Problem) -> int:
    """What two sweeps read and write: the least known for this algorithm.

    The same for all who compute the same, so that those who move more bytes show fewer GB/s.
    """
    return unscaled_step_bytes(problem) + problem.itemsize  # RMS(param): one more read


def unscaled_step_bytes(problem: Problem) -> int:
    grad_twice_param_read_and_written = 4 * problem.itemsize
    v_read_twice_and_written = 0 if problem.factored else 3 * np.dtype(np.float64).itemsize
    return grad_twice_param_read_and_written + v_read_twice_and_written


def seed(param: Array, lr: float) -> Update:
    return SeedAdaFactor(param.shape, lr).update


def unscaled_seed(param: Array, lr: float) -> Update:
    return SeedAdaFactor(param.shape, lr, scale_parameter=False).update


CONTENDERS = [
    Contender(names.SEED, seed, seed, step_bytes),
    Contender(
        names.IN_PLACE,
        lambda param, lr: NumpyInPlace(param, lr).update,
        seed,
        step_bytes,
    ),
    Contender(
        names.NUMBA,
        lambda param, lr: NumbaAdaFactor(param, lr).update,
        seed,
        step_bytes,
    ),
    Contender(
        names.NATIVE,
        lambda param, lr: AdaFactor(param.shape, lr).update,
        seed,
        step_bytes,
    ),
    Contender(
        names.UNSCALED,
        lambda param, lr: AdaFactor(param.shape, lr, scale_parameter=False).update,
        unscaled_seed,
        unscaled_step_bytes,
    ),
    Contender(
        names.FLOOR,
        lambda param, lr: roof.Floor(lr).update,
        lambda param, lr: roof.NumpyFloor(lr).update,
        lambda problem: 3 * problem.itemsize,
        roof=True,
    ),
    Contender(
        names.READ,
        lambda param, lr: roof.read,
        lambda param, lr: roof.numpy_read,
        lambda problem: problem.itemsize,
        roof=True,
    ),
]
OPTIMIZERS = [contender for contender in CONTENDERS if not contender.roof]
