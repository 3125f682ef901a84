"""Adafactor of a whole model, as one writes it in NumPy: groups, momentum, decay, a global clip.

The paper's Algorithms 4 and 5 with a learning rate given from outside, in place, with one scratch
array per tensor; parameters, gradients and state are float32. A tensor of more than two axes is a
batch of matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from problems import Array

DECAY_RATE = -0.8
EPS = 1e-30
EPS_SCALE = 1e-3
CLIP_THRESHOLD = 1.0


class NumpyGroups:
    """Changes the arrays that it is given.

    Parameters
    ----------
    groups : sequence of dict
        "params": arrays by name; "lr"; "scale_parameter"; "weight_decay", times lr.
    schedule : callable of t
        lr is multiplied by what it returns at t = 1, 2, ...
    beta1 : float
        Weight of the old first moment, which is one of steps, lr and scale included.
    max_grad_norm : float
        Gradients that together are longer than this are shortened to it, in place.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        *,
        schedule: Callable[[int], float],
        beta1: float,
        max_grad_norm: float,
    ) -> None:
        self.t = 0
        self.schedule = schedule
        self.max_grad_norm = max_grad_norm
        self.groups = [
            (group, {name: Tensor(param, beta1) for name, param in group["params"].items()})
            for group in groups
        ]

    def step(self, grads: Mapping[str, Array]) -> None:
        self.t += 1
        norm = math.sqrt(sum(sum_of_squares(grad) for grad in grads.values()))
        coefficient = self.max_grad_norm / (norm + 1e-6)
        if coefficient < 1:
            for grad in grads.values():
                grad *= coefficient

        beta2_t = 1 - self.t**DECAY_RATE
        for group, tensors in self.groups:
            lr = group["lr"] * self.schedule(self.t)
            for name, tensor in tensors.items():
                tensor.update(
                    grads[name],
                    beta2_t,
                    lr * max(EPS_SCALE, rms(tensor.param)) if group["scale_parameter"] else lr,
                    1 - lr * group["weight_decay"],
                )


class Tensor:
    def __init__(self, param: Array, beta1: float) -> None:
        self.param = param
        self.beta1 = beta1
        self.m = np.zeros_like(param)
        self.scratch = np.empty_like(param)
        if param.ndim < 2:
            self.v = np.zeros_like(param)
        else:
            self.row = np.zeros_like(param[..., :1])
            self.col = np.zeros_like(param[..., :1, :])

    def update(self, grad: Array, beta2_t: float, step_size: float, keep: float) -> None:
        sq = np.multiply(grad, grad, out=self.scratch)
        sq += EPS
        if self.param.ndim < 2:
            decay_towards(self.v, sq, beta2_t)
            u = np.divide(grad, np.sqrt(self.v), out=self.scratch)
        else:
            decay_towards(self.row, sq.mean(axis=-1, keepdims=True), beta2_t)
            decay_towards(self.col, sq.mean(axis=-2, keepdims=True), beta2_t)
            row_root = np.sqrt(self.row.mean(axis=-2, keepdims=True) / self.row)
            u = np.multiply(grad, row_root, out=self.scratch)
            u /= np.sqrt(self.col)

        u *= (1 - self.beta1) * step_size / max(1.0, rms(u) / CLIP_THRESHOLD)
        self.m *= self.beta1
        self.m += u
        if keep != 1:
            self.param *= keep
        self.param -= self.m


def decay_towards(mean: Array, new: Array, beta2_t: float) -> None:
    mean *= beta2_t
    mean += (1 - beta2_t) * new


def rms(array: Array) -> float:
    return math.sqrt(sum_of_squares(array) / array.size)


def sum_of_squares(array: Array) -> float:
    return float(np.vdot(array, array))
