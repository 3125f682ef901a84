"""Who takes part, what each is checked against, and how many bytes its step has to move.

To add a contender, write it in a file of its own and list its `update(param, grad)` here; if its
threads are set by a call of its library, add that to `harness.all_on`. Other libraries' optimizers
are in `peers`.
"""

from __future__ import annotations

import names
from adafactor_native import AdaFactor
from contenders import bytes_moved, half, one_call, roof
from contenders.contender import Contender, Update, array_by_array
from contenders.numba_adafactor import NumbaAdaFactor
from contenders.numpy_in_place import NumpyInPlace
from contenders.seed import SeedAdaFactor
from problems import Array, Problem


def without_gaps(problem: Problem) -> bool:
    return problem.layout != "slice"


def seed(param: Array, lr: float) -> Update:
    return SeedAdaFactor(param.shape, lr).update


def unscaled_seed(param: Array, lr: float) -> Update:
    return SeedAdaFactor(param.shape, lr, scale_parameter=False).update


CONTENDERS = [
    Contender(names.SEED, array_by_array(seed), seed, bytes_moved.seed),
    Contender(
        names.IN_PLACE,
        array_by_array(lambda param, lr: NumpyInPlace(param, lr).update),
        seed,
        bytes_moved.seed,
    ),
    Contender(
        names.NUMBA,
        array_by_array(lambda param, lr: NumbaAdaFactor(param, lr).update),
        seed,
        bytes_moved.seed,
    ),
    Contender(
        names.NATIVE,
        array_by_array(lambda param, lr: AdaFactor(param.shape, lr).update),
        seed,
        bytes_moved.seed,
    ),
    Contender(
        names.UNSCALED,
        array_by_array(lambda param, lr: AdaFactor(param.shape, lr, scale_parameter=False).update),
        unscaled_seed,
        bytes_moved.unscaled_seed,
    ),
    Contender(
        names.CARRIED,
        array_by_array(lambda param, lr: AdaFactor(param.shape, lr, carry_param_rms=True).update),
        seed,
        bytes_moved.carried_seed,
    ),
    *one_call.CONTENDERS,
    *half.CONTENDERS,
    Contender(
        names.FLOOR,
        array_by_array(lambda param, lr: roof.Floor(lr).update),
        lambda param, lr: roof.NumpyFloor(lr).update,
        bytes_moved.floor,
        takes=without_gaps,
        roof=True,
    ),
    Contender(
        names.READ,
        array_by_array(lambda param, lr: roof.read),
        lambda param, lr: roof.numpy_read,
        bytes_moved.read,
        takes=without_gaps,
        roof=True,
    ),
]
OPTIMIZERS = [
    contender
    for contender in CONTENDERS
    if not (contender.roof or contender.half or contender in one_call.CONTENDERS)
]
