"""keras' Adafactor on the JAX backend: `stateless_apply` under jit, with buffers given away.

Of the ways to use it on a CPU the fastest: XLA makes a few loops of what is otherwise one call of
the backend, and one array in memory, for each operation. It is what `fit` compiles on this backend.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"  # keras reads it once, when it is imported

import jax
import jax.numpy as jnp
import keras

import names
from contenders import bytes_moved
from contenders.contender import Contender, Update, but_the_largest
from contenders.jax_steps import JaxSteps, takes
from contenders.references import KerasAdafactor
from models import Shape
from problems import Array, Problem


@lru_cache(maxsize=1)
def compiled(shapes: tuple[Shape, ...]) -> tuple[Any, Any]:
    """An optimizer whose own variables stay as they began, and its step as a function of them."""
    optimizer = keras.optimizers.Adafactor()
    optimizer.build([keras.Variable(jnp.zeros(shape, jnp.float32)) for shape in shapes])
    return optimizer, jax.jit(optimizer.stateless_apply, donate_argnums=(0, 2))


class KerasSteps(JaxSteps):
    def __init__(self, params: list[Array], lr: float) -> None:
        super().__init__(params)
        optimizer, self._apply = compiled(tuple(param.shape for param in params))
        optimizer.learning_rate = lr  # a variable, and thus part of the state
        self._state = [jnp.array(variable.value) for variable in optimizer.variables]

    def _advance(self) -> None:
        self._params, self._state = self._apply(self._state, self._grads, self._params)


def reference(param: Array, lr: float) -> Update:
    return KerasAdafactor(param, lr).update


def takes_here(problem: Problem) -> bool:
    return takes(problem) and but_the_largest(problem)


CONTENDERS = [
    Contender(names.KERAS, KerasSteps, reference, bytes_moved.keras_adafactor, takes=takes_here),
]
