"""The truth the tests compare with: one Adafactor step in float64, slow and obvious.

Formulas: Shazeer & Stern 2018, "Adafactor" (arXiv:1804.04235), Algorithm 4 (matrices) and
Algorithm 5 (anything else), with the seed's choices where it departs from them: beta2 is a
constant, eps stands under the fraction as well as beside the squares, the scale is RMS(param)
without a floor, and the clip is left out where RMS(u) is not a number.

The root of V = exp_row exp_col / mean(exp_row) is a product of roots here: where a row and a column
have both been dead for long, V is less than any float64 though its root is an ordinary number. Nor
is that root 0, and 0 over it not a number, because it is less than any float64 itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class State:
    """What one tensor remembers: exp_row (rows,) and exp_col (cols,) of a matrix, else v."""

    t: int = 0
    exp_row: np.ndarray | None = None
    exp_col: np.ndarray | None = None
    v: np.ndarray | None = None


def initial_state(shape):
    """Return the state before the first step: no statistics yet."""
    if len(shape) == 2:
        return State(exp_row=np.zeros(shape[0]), exp_col=np.zeros(shape[1]))
    return State(v=np.zeros(shape))


def update(
    param,
    grad,
    state,
    *,
    lr=1e-2,
    beta2=0.999,
    eps=1e-30,
    clip_threshold=1.0,
    scale_parameter=True,
):
    """Return (param, state) after one step, in float64; nothing given is changed.

    Divisions 0/0 give NaN, as in the seed. A tensor without elements only counts the step.
    """
    param = np.array(param, np.float64)
    grad = np.array(grad, np.float64)
    state = replace(state, t=state.t + 1)
    if param.size == 0:
        return param, state

    with np.errstate(all="ignore"):
        grad_sq = grad * grad + eps
        if param.ndim == 2:
            row_mean = np.array([mean(row) for row in grad_sq])
            col_mean = np.array([mean(col) for col in grad_sq.T])
            exp_row = beta2 * state.exp_row + (1 - beta2) * row_mean
            exp_col = beta2 * state.exp_col + (1 - beta2) * col_mean
            state = replace(state, exp_row=exp_row, exp_col=exp_col)
            root = product(np.sqrt(exp_row)[:, None] / np.sqrt(mean(exp_row)), np.sqrt(exp_col))
        else:
            state = replace(state, v=beta2 * state.v + (1 - beta2) * grad_sq)
            root = np.sqrt(state.v)

        u = grad / (root + eps)
        if clip_threshold is not None and rms(u) > clip_threshold:
            u = u / (rms(u) / clip_threshold)
        scale = rms(param) if scale_parameter else 1.0
        return param - lr * scale * u, state


def product(x, y):
    """Product of numbers >= 0, above 0 where both are."""
    return np.where((x > 0) & (y > 0), np.maximum(x * y, np.nextafter(0, 1)), x * y)


def mean(values):
    """Mean with a correctly rounded sum, so that no order of adding is preferred."""
    return np.float64(math.fsum(np.ravel(values).tolist())) / np.size(values)


def rms(values):
    """Root of the mean square."""
    return np.sqrt(mean(values * values))
