"""optax's Adafactor under jit, as in a training loop that gives its buffers away."""

from __future__ import annotations

from typing import Any

import jax
import optax

import names
from contenders import bytes_moved
from contenders.contender import Contender, Update
from contenders.jax_steps import JaxSteps, takes
from contenders.references import OptaxAdafactor
from problems import Array


def optimizer(lr: Any) -> Any:
    return optax.adafactor(lr, min_dim_size_to_factor=2)  # by default, only from 128


def step(params: Any, state: Any, grads: Any, lr: Any) -> tuple[Any, Any]:
    updates, state = optimizer(lr).update(grads, state, params)
    return optax.apply_updates(params, updates), state


# Of the module, and with lr as an argument: compiled once for each list of shapes.
STEP = jax.jit(step, donate_argnums=(0, 1))


class OptaxSteps(JaxSteps):
    def __init__(self, params: list[Array], lr: float) -> None:
        super().__init__(params)
        self._lr = lr
        self._state = jax.jit(optimizer(lr).init)(self._params)

    def _advance(self) -> None:
        self._params, self._state = STEP(self._params, self._state, self._grads, self._lr)


def reference(param: Array, lr: float) -> Update:
    return OptaxAdafactor(param, lr).update


CONTENDERS = [
    Contender(names.OPTAX, OptaxSteps, reference, bytes_moved.adafactor, takes=takes),
]
