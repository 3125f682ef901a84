"""Adafactor as a good NumPy programmer writes it: in place, one scratch array, BLAS for the sums."""

from __future__ import annotations

import math

import numpy as np

from problems import Array

RUN = 1 << 20  # elements


class NumpyInPlace:
    """The step of plain_numpy without temporaries.

    What makes it quick, for a matrix: the square root of an outer product is the outer product of
    square roots, so nothing but multiplications touches the matrix; and every sum, RMS(u) too, is
    a product of grad² with a vector, which BLAS runs on all threads. The eps under the fraction
    is left out, since 1e-30 vanishes beside any root of a mean square in these problems.
    """

    def __init__(
        self,
        param: Array,
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
        if param.ndim == 2:
            rows, cols = param.shape
            self.exp_row, self.exp_col = np.zeros(rows), np.zeros(cols)
            self.row_ones, self.col_ones = np.ones(rows, param.dtype), np.ones(cols, param.dtype)
            self.scratch = np.empty_like(param)
        else:
            self.v = np.zeros(param.shape)
            self.scratch = np.empty_like(self.v)

    def update(self, param: Array, grad: Array) -> Array:
        step = self._factored_step if param.ndim == 2 else self._unfactored_step
        return step(param, grad)

    def _factored_step(self, param: Array, grad: Array) -> Array:
        rows, cols = param.shape
        sq = np.multiply(grad, grad, out=self.scratch)
        self._decay_towards(self.exp_row, sq @ self.col_ones / cols)
        self._decay_towards(self.exp_col, self.row_ones @ sq / rows)

        row_root = np.sqrt(self.exp_row.mean() / self.exp_row)  # u = grad * row_root * col_root
        col_root = np.sqrt(1 / self.exp_col)
        u_sq_sum = row_root**2 @ (sq @ (col_root**2).astype(param.dtype))
        row_root *= self._step_size(param, u_sq_sum)

        u = np.multiply(grad, row_root.astype(param.dtype)[:, None], out=self.scratch)
        u *= col_root.astype(param.dtype)
        param -= u
        return param

    def _unfactored_step(self, param: Array, grad: Array) -> Array:
        sq = np.multiply(grad, grad, out=self.scratch)
        sq *= 1 - self.beta2
        self.v *= self.beta2
        self.v += sq
        self.v += (1 - self.beta2) * self.eps

        root = np.sqrt(self.v, out=self.scratch)
        root += self.eps
        u = np.divide(grad, root, out=self.scratch)
        u *= self._step_size(param, float(np.vdot(u, u)))
        param -= u
        return param

    def _decay_towards(self, mean: Array, new_mean_sq: Array) -> None:
        mean *= self.beta2
        mean += (1 - self.beta2) * (new_mean_sq + self.eps)

    def _step_size(self, param: Array, u_sq_sum: float) -> float:
        step = self.lr / max(1.0, math.sqrt(u_sq_sum / param.size) / self.clip_threshold)
        if self.scale_parameter:
            step *= math.sqrt(sum_of_squares(param) / param.size)
        return step


def sum_of_squares(array: Array) -> float:
    if not array.flags.forc:
        return float(np.einsum("ij,ij->i", array, array).sum(dtype=np.float64))
    # Views, so that BLAS takes long runs at once, but not all at once: float32 sums of so many lose
    # the sixth digit.
    flat = array.ravel(order="K")
    return sum(float(np.vdot(run, run)) for run in np.split(flat, range(RUN, flat.size, RUN)))
