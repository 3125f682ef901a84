"""Who takes part, what each is checked against, and how many bytes its step has to move.

To add a contender, write it in a file of its own and list its `update(param, grad)` here; if its
threads are set by a call of its library, add that to `harness.all_on`. Other libraries' optimizers
are in `peers`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import names
from adafactor_native import AdaFactor
from contenders import bytes_moved, float32_state, half, measured, one_call, roof, sweeps
from contenders.contender import Contender, Update, array_by_array, but_the_largest, on_all_cores
from contenders.numba_adafactor import NumbaAdaFactor
from contenders.numpy_in_place import NumpyInPlace
from contenders.plain_numpy import plain, plain_unscaled
from problems import Array, Problem


def without_gaps(problem: Problem) -> bool:
    return problem.layout != "slice"


def make_floor(loop: Any, param: Array, lr: float) -> Update:
    update: Update = roof.Floor(loop, lr).update
    return update


def make_read(loop: Any, param: Array, lr: float) -> Update:
    update: Update = roof.Read(loop).update
    return update


CONTENDERS = [
    Contender(names.PLAIN, array_by_array(plain), plain, bytes_moved.scaled, takes=on_all_cores),
    Contender(
        names.IN_PLACE,
        array_by_array(lambda param, lr: NumpyInPlace(param, lr).update),
        plain,
        bytes_moved.scaled,
        takes=but_the_largest,
    ),
    Contender(
        names.NUMBA,
        array_by_array(lambda param, lr: NumbaAdaFactor(param, lr).update),
        plain,
        bytes_moved.scaled,
        sweeps.scaled,
    ),
    Contender(
        names.NATIVE,
        array_by_array(lambda param, lr: AdaFactor(param.shape, lr).update),
        plain,
        bytes_moved.scaled,
        sweeps.scaled,
    ),
    Contender(
        names.UNSCALED,
        array_by_array(lambda param, lr: AdaFactor(param.shape, lr, scale_parameter=False).update),
        plain_unscaled,
        bytes_moved.unscaled,
        sweeps.unscaled,
    ),
    Contender(
        names.CARRIED,
        array_by_array(lambda param, lr: AdaFactor(param.shape, lr, carry_param_rms=True).update),
        plain,
        bytes_moved.carried,
        sweeps.unscaled,
    ),
    *one_call.CONTENDERS,
    *measured.CONTENDERS,
    *float32_state.CONTENDERS,
    *half.CONTENDERS,
    *(
        Contender(
            name,
            array_by_array(partial(make_floor, loop)),
            lambda param, lr: roof.NumpyFloor(lr).update,
            bytes_moved.floor,
            takes=without_gaps,
            roof=True,
        )
        for name, loop in zip(names.FLOORS, roof.FLOORS)
    ),
    *(
        Contender(
            name,
            array_by_array(partial(make_read, loop)),
            lambda param, lr: roof.numpy_read,
            bytes_moved.read,
            takes=without_gaps,
            roof=True,
        )
        for name, loop in zip(names.READS, roof.READS)
    ),
]
WHOLE = [*one_call.CONTENDERS, *measured.CONTENDERS, *float32_state.CONTENDERS]
OPTIMIZERS = [
    contender
    for contender in CONTENDERS
    if not (contender.roof or contender.half or contender in WHOLE)
]
