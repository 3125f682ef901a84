"""keras' Adafactor on the JAX backend. `run(groups, steps, **options)` as in torch_optimizers."""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "jax"  # keras reads it once, when it is imported

import jax
import keras as k
import numpy as np

from peers.optax_chains import COMPILER_OPTIONS


class OfCount(k.optimizers.schedules.LearningRateSchedule):
    def __init__(self, function):
        self._function = function

    def __call__(self, step):
        return self._function(step)


def keras(groups, steps, **options):
    if callable(options.get("learning_rate")):
        options["learning_rate"] = OfCount(options["learning_rate"])
    [group] = groups
    arrays = group["params"]
    dtype = next(iter(arrays.values())).dtype
    with jax.enable_x64(dtype == np.float64):
        params = [k.Variable(param, dtype=str(dtype)) for param in arrays.values()]
        optimizer = k.optimizers.Adafactor(**options)
        optimizer.build(params)
        advance = jax.jit(optimizer.stateless_apply, compiler_options=COMPILER_OPTIONS)
        state = [variable.value for variable in optimizer.variables]
        values = [param.value for param in params]
        after = []
        for grads in steps:
            values, state = advance(state, [grads[name] for name in arrays], values)
            after.append({name: np.asarray(value) for name, value in zip(arrays, values)})
    return after
