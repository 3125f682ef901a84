"""Who takes part, what each is checked against, and how many bytes its step has to move.

To add a contender, write it in a file of its own and list its `update(param, grad)` here; if its
threads are set by a call of its library, add that to `harness.all_on`. Other libraries' optimizers
are in `peers`.
"""

from __future__ import annotations

import names
from adafactor_native import AdaFactor
from contenders import bytes_moved, half, one_call, roof
from contenders.contender import Contender, array_by_array
from contenders.numba_adafactor import NumbaAdaFactor
from contenders.numpy_in_place import NumpyInPlace
from contenders.plain_numpy import plain, plain_unscaled
from problems import Problem


def without_gaps(problem: Problem) -> bool:
    return problem.layout != "slice"


CONTENDERS = [
    Contender(names.PLAIN, array_by_array(plain), plain, bytes_moved.scaled),
    Contender(
        names.IN_PLACE,
        array_by_array(lambda param, lr: NumpyInPlace(param, lr).update),
        plain,
        bytes_moved.scaled,
    ),
    Contender(
        names.NUMBA,
        array_by_array(lambda param, lr: NumbaAdaFactor(param, lr).update),
        plain,
        bytes_moved.scaled,
    ),
    Contender(
        names.NATIVE,
        array_by_array(lambda param, lr: AdaFactor(param.shape, lr).update),
        plain,
        bytes_moved.scaled,
    ),
    Contender(
        names.UNSCALED,
        array_by_array(lambda param, lr: AdaFactor(param.shape, lr, scale_parameter=False).update),
        plain_unscaled,
        bytes_moved.unscaled,
    ),
    Contender(
        names.CARRIED,
        array_by_array(lambda param, lr: AdaFactor(param.shape, lr, carry_param_rms=True).update),
        plain,
        bytes_moved.carried,
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
