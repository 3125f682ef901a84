"""Adafactor in the twenty lines of NumPy that people write: where everyone starts, and the reference."""

from __future__ import annotations

import numpy as np

from contenders.contender import Update
from problems import Array


class PlainAdaFactor:
    """Adafactor as its definition reads, with a full-size temporary for almost every operation.

    NumPy's promotion is left alone, as in a training script: the state is float64, and so is
    everything that touches it, even with float32 parameters. In float64 it is the reference
    that the other contenders of this formula (``convention="numpy"``) are checked against.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        lr: float = 1e-2,
        beta2: float = 0.999,
        eps: float = 1e-30,
        clip_threshold: float = 1.0,
        scale_parameter: bool = True,
    ) -> None:
        self.lr = lr
        self.beta2 = beta2
        self.eps = eps
        self.clip_threshold = clip_threshold
        self.scale_parameter = scale_parameter
        self.factored = len(shape) == 2
        if self.factored:
            self.exp_row = np.zeros(shape[0])
            self.exp_col = np.zeros(shape[1])
        else:
            self.v = np.zeros(shape)
        self.t = 0

    def update(self, param: Array, grad: Array) -> Array:
        self.t += 1
        grad2 = grad * grad + self.eps
        keep, add = self.beta2, 1 - self.beta2

        if self.factored:
            self.exp_row = keep * self.exp_row + add * grad2.mean(axis=1)
            self.exp_col = keep * self.exp_col + add * grad2.mean(axis=0)
            v = np.outer(self.exp_row, self.exp_col) / self.exp_row.mean()
        else:
            self.v = keep * self.v + add * grad2
            v = self.v

        np.sqrt(np.mean(grad2))  # never used, but part of those lines
        u = grad / (np.sqrt(v) + self.eps)
        u /= max(1.0, np.sqrt(np.mean(u**2)) / self.clip_threshold)

        scale = np.sqrt(np.mean(param**2)) if self.scale_parameter else 1.0
        param -= self.lr * scale * u
        return param


def plain(param: Array, lr: float) -> Update:
    return PlainAdaFactor(param.shape, lr).update


def plain_unscaled(param: Array, lr: float) -> Update:
    return PlainAdaFactor(param.shape, lr, scale_parameter=False).update
