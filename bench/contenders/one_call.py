"""Our optimizer of whole models: one native call for all parameters."""

from __future__ import annotations

import timeit
from functools import partial
from typing import Any

import names
from adafactor_native import Optimizer
from contenders import bytes_moved, sweeps
from contenders.contender import Contender, Start, Update
from contenders.plain_numpy import plain
from contenders.references import KerasAdafactor, TorchAdafactor, TransformersAdafactor
from problems import Array, Problem
from stopwatch import stopwatch


class OneCall:
    def __init__(self, options: dict[str, Any], params: list[Array], lr: float) -> None:
        self._params = params
        self._optimizer = Optimizer(params, **{"convention": "numpy", "lr": lr, **options})
        self._step = self._optimizer.step

    def use(self, grads: list[Array]) -> None:
        self._grads = grads

    def timer(self) -> timeit.Timer:
        return stopwatch("step(grads)", step=self._step, grads=self._grads)

    def params(self) -> list[Array]:
        return self._params


def one_call(**options: Any) -> Start:
    return partial(OneCall, options)


def as_torch(param: Array, lr: float) -> Update:
    return TorchAdafactor(param, lr).update


def as_hugging_face(param: Array, lr: float) -> Update:
    return TransformersAdafactor(param, lr).update


def as_keras(param: Array, lr: float) -> Update:
    return KerasAdafactor(param, lr).update


def of_many(problem: Problem) -> bool:
    return problem.group == "model"


def of_kernels(problem: Problem) -> bool:
    """The conventions differ in speed where tensors have more than two axes."""
    return problem.model == "ResNet-50"


CONTENDERS = [
    Contender(names.ONE_CALL, one_call(), plain, bytes_moved.scaled, sweeps.scaled, takes=of_many),
    Contender(
        names.ONE_CALL_BY_TENSOR,
        one_call(atomic="tensor"),
        plain,
        bytes_moved.scaled,
        sweeps.scaled,
        takes=of_many,
    ),
    Contender(
        names.ONE_CALL_CARRIED,
        one_call(atomic="tensor", carry_param_rms=True),
        plain,
        bytes_moved.carried,
        sweeps.unscaled,
        takes=of_many,
    ),
    Contender(
        names.ONE_CALL_AS_TORCH,
        # what torch takes eps None for, of float32
        one_call(convention="torch", eps=(TorchAdafactor.floor, 1e-3)),
        as_torch,
        bytes_moved.adafactor,
        sweeps.scaled_axes_factored,
        takes=of_many,
    ),
    Contender(
        names.ONE_CALL_AS_HUGGING_FACE,
        one_call(convention="huggingface", scale_parameter=True, relative_step=False),
        as_hugging_face,
        bytes_moved.adafactor,
        sweeps.scaled_axes_factored,
        takes=of_kernels,
    ),
    Contender(
        names.ONE_CALL_AS_KERAS,
        one_call(convention="keras"),
        as_keras,
        bytes_moved.adafactor,
        sweeps.scaled_axes_factored,
        takes=of_kernels,
    ),
]
