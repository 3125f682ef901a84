"""What the other libraries compute, each in the plainest NumPy; called with float64.

Unlike plain_numpy they let the decay grow with the step, keep a floor under RMS(param), and factor
two of any number of axes, with the others as batches. From each other they differ in where eps
acts, in which axes they factor and in the step size.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from models import Shape
from problems import Array

DECAY = -0.8
SMALLEST_SCALE = 1e-3  # of a parameter: one of zeros moves, too
CLIP_THRESHOLD = 1.0


class TransformersAdafactor:
    """With `relative_step=False`: the plainest, from which the others differ in a line or two."""

    eps = 1e-30

    def __init__(self, param: Array, lr: float) -> None:
        self.lr = lr
        self.t = 0
        self.axes = self.factored_axes(param.shape)
        if self.axes is None:
            self.v = np.zeros(param.shape)
        else:
            col_axis, row_axis = self.axes
            self.row = np.zeros_like(param.mean(row_axis, keepdims=True))
            self.col = np.zeros_like(param.mean(col_axis, keepdims=True))

    def update(self, param: Array, grad: Array) -> Array:
        self.t += 1
        beta2_t = 1 - self.t**DECAY
        grad_sq = grad**2 + self.eps
        if self.axes is None:
            self.v = beta2_t * self.v + (1 - beta2_t) * grad_sq
        else:
            col_axis, row_axis = self.axes
            self.row = beta2_t * self.row + (1 - beta2_t) * grad_sq.mean(row_axis, keepdims=True)
            self.col = beta2_t * self.col + (1 - beta2_t) * grad_sq.mean(col_axis, keepdims=True)
        u = grad / np.sqrt(self.second_moment())
        u /= max(1, rms(u) / CLIP_THRESHOLD)
        param -= self.step_size() * max(SMALLEST_SCALE, rms(param)) * u
        return param

    def factored_axes(self, shape: Shape) -> tuple[int, int] | None:
        return (-2, -1) if len(shape) >= 2 else None

    def second_moment(self) -> Array:
        if self.axes is None:
            return self.v
        v: Array = self.row * self.col / self.row.mean(self.axes[0], keepdims=True)
        return v

    def step_size(self) -> float:
        return self.lr


class KerasAdafactor(TransformersAdafactor):
    def step_size(self) -> float:
        return min(self.lr, 1 / math.sqrt(self.t))


class TorchAdafactor(KerasAdafactor):
    """eps is no part of the means, but a floor for what they are divided by and for the root."""

    eps = 0.0
    floor = float(np.finfo(np.float32).eps)

    def second_moment(self) -> Array:
        if self.axes is None:
            v = self.v
        else:
            mean = self.row.mean(self.axes[0], keepdims=True)
            v = self.row * self.col / np.maximum(mean, self.floor)
        return np.maximum(v, self.floor**2)


class OptaxAdafactor(TransformersAdafactor):
    """Factors the two largest axes, if both have two elements or more."""

    def factored_axes(self, shape: Shape) -> tuple[int, int] | None:
        by_size = np.argsort(shape)
        if len(shape) < 2 or shape[by_size[-2]] < 2:
            return None
        return int(by_size[-2]), int(by_size[-1])


class AdamW:
    """torch's defaults: beta1 0.9, beta2 0.999, eps 1e-8, weight decay 0.01."""

    def __init__(self, param: Array, lr: float) -> None:
        self.lr = lr
        self.t = 0
        self.m, self.v = np.zeros(param.shape), np.zeros(param.shape)

    def update(self, param: Array, grad: Array) -> Array:
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * grad
        self.v = 0.999 * self.v + 0.001 * grad**2
        m_hat = self.m / (1 - 0.9**self.t)
        v_hat = self.v / (1 - 0.999**self.t)
        param -= self.lr * 0.01 * param
        param -= self.lr * m_hat / (np.sqrt(v_hat) + 1e-8)
        return param


class HalfAdamW(AdamW):
    """Parameter and both moments are rounded to bfloat16 after every step."""

    def update(self, param: Array, grad: Array) -> Array:
        super().update(param, grad)
        for kept in (param, self.m, self.v):
            kept[...] = kept.astype(ml_dtypes.bfloat16)
        return param


def rms(x: Array) -> float:
    return float(np.sqrt(np.mean(x**2)))
