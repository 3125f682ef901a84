"""A model of small arrays that holds what conventions differ on, and gradients for it."""

from __future__ import annotations

import numpy as np

STEPS = 20
ALL_ZERO_AT = 7  # index of the step whose gradients are all zero

SHAPES = {
    "scalar": (),
    "vector": (7,),
    "row": (1, 6),
    "wide": (3, 17),
    "tall": (17, 3),
    "square": (8, 8),
    "stack": (3, 4, 6),
    "largest first": (9, 5, 2),
    "largest apart": (7, 2, 6),
    "kernel": (2, 3, 4, 5),
    "kernel, largest first": (6, 5, 2, 2),
    "two pairs": (4, 3, 4, 3),
    "three of a size": (4, 4, 2, 4),
    "at zero": (5, 4),
    "near zero": (4, 5),
    "faint gradient": (6, 5),
    "late gradient": (5, 6),
    "empty": (0, 3),
    "no matrices": (0, 4, 5),
}
SIZE = {"at zero": 0.0, "near zero": 1e-4}  # of param, where not 1
GRADIENT_SIZE = {"faint gradient": 1e-5}
ZERO_AT_FIRST = ("late gradient", "vector")

# Around the least sizes that are factored by default: optax's 128, big_vision's 32, timm's 16
AROUND_128 = {"at": (128, 129), "below": (127, 200), "batched": (2, 130, 128)}
AROUND_32 = {"at": (33, 32), "below": (31, 40), "batched": (2, 32, 3, 33)}
AROUND_16 = {"at": (17, 16), "above": (18, 17), "below": (15, 40), "batched": (20, 18, 2, 3)}


def params(shapes=SHAPES, dtype=np.float64):
    """Return name -> array, in float32's numbers whatever the dtype."""
    rng = np.random.default_rng(1)
    return {
        name: np.asarray(rng.standard_normal(shape, np.float32) * SIZE.get(name, 1), dtype)
        for name, shape in shapes.items()
    }


def gradients(shapes=SHAPES, dtype=np.float64, dead=True):
    """Return name -> array for each step, in float32's numbers whatever the dtype.

    Sizes run over two decades along the last axis. The first index of every axis of at least three
    is dead: always 0, so that each pair of axes has a dead row and a dead column.
    """
    return [
        {name: _gradient(name, shape, index, dtype, dead) for name, shape in shapes.items()}
        for index in range(STEPS)
    ]


def _gradient(name, shape, index, dtype, dead):
    rng = np.random.default_rng([index, len(name), *shape])
    grad = np.asarray(rng.standard_normal(shape, np.float32) * GRADIENT_SIZE.get(name, 1))
    if shape:
        grad = grad * np.geomspace(0.1, 10, shape[-1], dtype=np.float32)
    for axis, n in enumerate(shape):
        if n >= 3 and dead:
            np.moveaxis(grad, axis, 0)[0] = 0
    if index == ALL_ZERO_AT or (index == 0 and name in ZERO_AT_FIRST):
        grad = np.zeros(shape)
    return grad.astype(dtype)
