"""A JAX optimizer at work. Its parameters and state are JAX's own, and each step is given both."""

from __future__ import annotations

import timeit
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from problems import Array, Problem, usable_cores
from stopwatch import stopwatch

MOST_TENSORS = 500


class JaxSteps:
    """To be completed by `_advance`, which replaces parameters and state by those after a step."""

    _state: Any

    def __init__(self, params: list[Array]) -> None:
        self._params = on_device(params)

    def use(self, grads: list[Array]) -> None:
        self._grads = on_device(grads)

    def timer(self) -> timeit.Timer:
        return stopwatch("step()", step=self._step)

    def params(self) -> list[Array]:
        return [np.asarray(param) for param in self._params]

    def _step(self) -> None:
        self._advance()
        jax.block_until_ready((self._params, self._state))

    def _advance(self) -> None:
        raise NotImplementedError


def on_device(arrays: list[Array]) -> list[Any]:
    """Copies: what JAX is given to keep, it overwrites."""
    return [jnp.array(array) for array in arrays]


def takes(problem: Problem) -> bool:
    """JAX knows neither float64, as it is set up by default, nor strides.

    XLA runs on all cores: nothing can tell it otherwise once the process has started. It compiles a
    step of very many tensors for minutes.
    """
    all_cores = problem.threads == usable_cores()
    return (
        all_cores
        and len(problem.shapes) <= MOST_TENSORS
        and (problem.dtype, problem.layout) == ("float32", "C")
    )
