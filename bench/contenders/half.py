"""Our optimizer on arrays of half precision, beside itself in float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import names
from contenders import bytes_moved, contender
from contenders.contender import Contender, Make, Start, Update
from contenders.one_call import OneCall
from contenders.plain_numpy import plain
from harness import CHECKED_STEPS
from problems import Array, Problem

# The distance from 1 to the next number, and the most that nearby numbers differ by, relatively.
UNIT = {"bfloat16": 2**-7, "float16": 2**-10}


class HalfOneCall(OneCall):
    """In arrays of its own where they are of another type than the problem's."""

    def __init__(
        self, param: str, grad: str, options: dict[str, Any], params: list[Array], lr: float
    ) -> None:
        super().__init__(options, in_type(params, param), lr)
        self._grad_dtype = grad

    def use(self, grads: list[Array]) -> None:
        super().use(in_type(grads, self._grad_dtype))

    def params(self) -> list[Array]:
        return in_type(super().params(), "float32")


class CopyOneCall(HalfOneCall):
    """What is checked of it are the copies."""

    def __init__(self, options: dict[str, Any], params: list[Array], lr: float) -> None:
        self._copies = in_type(params, "bfloat16")
        super().__init__("float32", "bfloat16", {**options, "copies": self._copies}, params, lr)

    def params(self) -> list[Array]:
        return in_type(self._copies, "float32")


def in_type(arrays: list[Array], dtype: str) -> list[Array]:
    return [array.astype(dtype, copy=False) for array in arrays]


def half_steps(param: str, grad: str, **options: Any) -> Start:
    return partial(HalfOneCall, param, grad, options)


def rounded_after_steps(make: Make, dtype: str) -> Make:
    """The reference of a parameter that is rounded to nearest after every step."""

    def rounded(param: Array, lr: float) -> Update:
        update = make(param, lr)

        def update_and_round(param: Array, grad: Array) -> Array:
            update(param, grad)
            param[...] = param.astype(dtype)
            return param

        return update_and_round

    return rounded


def with_momentum(make: Make) -> Make:
    """The reference of `beta1=0.9`: the parameter takes the mean of the steps, learning rate and all."""

    def averaged(param: Array, lr: float) -> Update:
        update = make(param, lr)
        moment = np.zeros(param.shape)

        def update_averaged(param: Array, grad: Array) -> Array:
            before = param.copy()
            update(param, grad)
            moment[...] = 0.9 * moment + 0.1 * (before - param)
            param[...] = before - moment
            return param

        return update_averaged

    return averaged


def within(units: float, dtype: str) -> Callable[[Problem], float]:
    """So many distances of two neighbours in dtype, beside what float32 may be off."""
    return lambda problem: units * UNIT[dtype] + contender.allowed_error(problem)


def rounded_contender(
    name: str, dtype: str, start: Start, exact: Make = plain, moment: int = 0
) -> Contender:
    return Contender(
        name,
        start,
        rounded_after_steps(exact, dtype),
        bytes_moved.of_types(param=2, grad=2, moment=moment),
        allowed_error=within(1, dtype),  # what is next to a tie may be rounded to the other side
        half=True,
    )


def stochastic_contender(name: str, dtype: str) -> Contender:
    return Contender(
        name,
        half_steps(dtype, dtype, rounding="stochastic"),
        plain,
        bytes_moved.of_types(param=2, grad=2),
        allowed_error=within(CHECKED_STEPS, dtype),
        half=True,
    )


CONTENDERS = [
    Contender(
        names.FLOAT32,
        half_steps("float32", "float32"),
        plain,
        bytes_moved.of_types(param=4, grad=4),
        half=True,
    ),
    Contender(
        names.HALF_GRAD,
        half_steps("float32", "bfloat16"),
        plain,
        bytes_moved.of_types(param=4, grad=2),
        half=True,
    ),
    Contender(
        names.HALF_COPY,
        partial(CopyOneCall, {}),
        plain,
        bytes_moved.of_types(param=4, grad=2, copy=2),
        allowed_error=within(0.5, "bfloat16"),
        half=True,
    ),
    rounded_contender(names.HALF, "bfloat16", half_steps("bfloat16", "bfloat16")),
    rounded_contender(
        names.HALF_MOMENTUM_IN_HALF,
        "bfloat16",
        half_steps("bfloat16", "bfloat16", beta1=0.9, momentum_dtype="bfloat16"),
        with_momentum(plain),
        moment=2,
    ),
    rounded_contender(
        names.HALF_MOMENTUM,
        "bfloat16",
        half_steps("bfloat16", "bfloat16", beta1=0.9, momentum_dtype="float32"),
        with_momentum(plain),
        moment=4,
    ),
    stochastic_contender(names.HALF_STOCHASTIC, "bfloat16"),
    Contender(
        names.HALF_MASTERS,
        half_steps("bfloat16", "bfloat16", masters="float32"),
        plain,
        bytes_moved.of_types(param=4, grad=2, copy=2),
        allowed_error=within(0.5, "bfloat16"),
        half=True,
    ),
    Contender(
        names.HALF_SPLIT,
        half_steps("bfloat16", "bfloat16", masters="split"),
        plain,
        bytes_moved.of_types(param=4, grad=2),
        allowed_error=within(0.5, "bfloat16"),
        half=True,
    ),
    rounded_contender(names.HALF_FLOAT16, "float16", half_steps("float16", "float16")),
    stochastic_contender(names.HALF_FLOAT16_STOCHASTIC, "float16"),
]
