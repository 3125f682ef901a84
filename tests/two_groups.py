"""A small model of every kind of tensor in two groups, and how conventions step it."""

import numpy as np

from adafactor_native import Optimizer
from arrays import normal

SHAPES = {"w": (4, 5), "b": (5,), "k": (6, 2, 5), "s": (), "z": (0, 3), "f": (3, 4)}

# One of each kind: constant and by t, with and without first moments and factored tensors of any axes
RUNS = {
    "numpy": {"convention": "numpy", "lr": 0.5},
    "huggingface": {"convention": "huggingface", "beta1": 0.9, "weight_decay": 0.1},
    "torch": {"convention": "torch", "eps": (None, 1e-3), "max_grad_norm": 1.5},
    "optax": {
        "convention": "optax",
        "learning_rate": lambda count: 0.5 / (count + 1),
        "min_dim_size_to_factor": 4,
        "momentum": 0.5,
    },
    "big_vision": {"convention": "big_vision", "lr": 0.1, "wd": 0.1, "min_dim_size_to_factor": 2},
}


def new_params(dtype=np.float32):
    params = {name: normal(shape, dtype, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}
    params["f"] = np.asfortranarray(params["f"])
    return params


def gradients(t):
    grads = {
        name: normal(shape, np.float32, seed=100 * t + i)
        for i, (name, shape) in enumerate(SHAPES.items())
    }
    return {**grads, "k": None if t == 2 else grads["k"]}


def optimizer(run, params=None):
    """Two groups, as the run has them."""
    params = new_params() if params is None else params
    first = {name: params[name] for name in ("w", "b", "k")}
    second = {name: params[name] for name in ("s", "z", "f")}
    return Optimizer([{"params": first}, {"params": second, "clip_threshold": 0.5}], **RUNS[run])
