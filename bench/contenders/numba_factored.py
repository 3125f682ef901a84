# mypy: ignore-errors
# numba compiles these loops; to mypy they are calls of unknown decorators.
"""numba's step of a matrix: measure, resolve, apply."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from contenders.jit import FAST, decayed, serial_and_parallel

PANEL_ROWS = 64  # rows whose column sums are kept in the parameter's precision


def factored_step_with(jit):
    measure_matrix, apply_matrix = jit(measure), jit(apply)

    @njit(**FAST)
    def step(
        param, param_col, grad, grad_col, exp_row, exp_col, chunk_sums, panel_sums,
        lr, beta2, eps, clip_threshold, scale_parameter,
    ):  # fmt: skip
        param_sq = measure_matrix(
            param, param_col, grad, grad_col, exp_row, chunk_sums, panel_sums,
            beta2, eps, scale_parameter,
        )  # fmt: skip
        col_root = panel_sums[0, : exp_col.size]
        rms_u = resolve(exp_row, exp_col, chunk_sums[0], col_root, beta2, eps)
        step_size = lr / max(1.0, rms_u / clip_threshold) * np.sqrt(exp_row.sum() / exp_row.size)
        if scale_parameter:
            step_size *= np.sqrt(param_sq / (exp_row.size * exp_col.size))
        chunks = len(chunk_sums)
        apply_matrix(param, param_col, grad, grad_col, exp_row, col_root, chunks, step_size)

    return step


def measure(param, param_col, grad, grad_col, exp_row, chunk_sums, panel_sums, beta2, eps, scale):
    """Update exp_row; leave grad² and grad²/exp_row, summed over rows, in chunk_sums[0].

    Returns the sum of param².
    """
    rows, cols, chunks = exp_row.size, chunk_sums.shape[2], len(chunk_sums)
    param_sq = np.zeros(chunks)
    for chunk in prange(chunks):
        sums, panel = chunk_sums[chunk], panel_sums[chunk]
        sums.fill(0)
        first, stop = chunk * rows // chunks, (chunk + 1) * rows // chunks
        for top in range(first, stop, PANEL_ROWS):
            end = min(top + PANEL_ROWS, stop)
            panel.fill(0)
            for i in range(top, end - 3, 4):
                measure_rows(panel, exp_row, i, *four_rows(grad, grad_col, i, cols), beta2, eps)
            for i in range(end - (end - top) % 4, end):
                measure_row(panel, exp_row, i, one_row(grad, grad_col, i, cols), beta2, eps)
            for j in range(cols):
                sums[0, j] += panel[j]
                sums[1, j] += panel[cols + j]
        if scale:
            param_sq[chunk] = sum_of_squares(param, param_col, first, stop, cols)

    for chunk in range(1, chunks):
        for j in range(cols):
            chunk_sums[0, 0, j] += chunk_sums[chunk, 0, j]
            chunk_sums[0, 1, j] += chunk_sums[chunk, 1, j]
    return param_sq.sum()


@njit(**FAST)
def resolve(exp_row, exp_col, sums, col_root, beta2, eps):
    """Update exp_col; leave 1/sqrt(exp_col) in col_root; return RMS(u)."""
    rows, cols = exp_row.size, exp_col.size
    u_sq = 0.0
    for j in range(cols):
        exp_col[j] = decayed(exp_col[j], sums[0, j] / rows, beta2, eps)
        u_sq += sums[1, j] / exp_col[j]
        col_root[j] = 1 / np.sqrt(exp_col[j])
    return np.sqrt(u_sq * (exp_row.sum() / rows) / (rows * cols))


def apply(param, param_col, grad, grad_col, exp_row, col_root, chunks, step_size):
    rows, cols = exp_row.size, col_root.size
    for chunk in prange(chunks):
        for i in range(chunk * rows // chunks, (chunk + 1) * rows // chunks):
            p, g = one_row(param, param_col, i, cols), one_row(grad, grad_col, i, cols)
            subtract_scaled(p, g, col_root, p.dtype.type(step_size / np.sqrt(exp_row[i])))


@njit(**FAST)
def one_row(matrix, first_col, i, cols):
    return matrix[i, first_col : first_col + cols]


@njit(**FAST)
def four_rows(matrix, first_col, i, cols):
    """Four rows at a time are four streams from memory at once, and one load of the column sums."""
    return (
        one_row(matrix, first_col, i, cols),
        one_row(matrix, first_col, i + 1, cols),
        one_row(matrix, first_col, i + 2, cols),
        one_row(matrix, first_col, i + 3, cols),
    )


@njit(**FAST)
def measure_rows(panel, exp_row, i, a, b, c, d, beta2, eps):
    cols, real = a.size, a.dtype.type
    a_sq, b_sq, c_sq, d_sq = squares_of_rows(a, b, c, d)
    a_mean = exp_row[i] = decayed(exp_row[i], a_sq / cols, beta2, eps)
    b_mean = exp_row[i + 1] = decayed(exp_row[i + 1], b_sq / cols, beta2, eps)
    c_mean = exp_row[i + 2] = decayed(exp_row[i + 2], c_sq / cols, beta2, eps)
    d_mean = exp_row[i + 3] = decayed(exp_row[i + 3], d_sq / cols, beta2, eps)
    weights = real(1 / a_mean), real(1 / b_mean), real(1 / c_mean), real(1 / d_mean)
    add_to_columns(panel, cols, a, b, c, d, *weights)


@njit(**FAST)
def add_to_columns(panel, cols, a, b, c, d, a_weight, b_weight, c_weight, d_weight):
    """Both sums live in one array: with two, LLVM gives up proving that they do not overlap."""
    for j in range(cols):
        a_sq, b_sq, c_sq, d_sq = a[j] * a[j], b[j] * b[j], c[j] * c[j], d[j] * d[j]
        panel[j] += (a_sq + b_sq) + (c_sq + d_sq)
        a_u, b_u, c_u, d_u = a_sq * a_weight, b_sq * b_weight, c_sq * c_weight, d_sq * d_weight
        panel[cols + j] += (a_u + b_u) + (c_u + d_u)


@njit(**FAST)
def squares_of_rows(a, b, c, d):
    zero = a.dtype.type(0)
    a_sum, b_sum, c_sum, d_sum = zero, zero, zero, zero
    for j in range(a.size):
        a_sum += a[j] * a[j]
        b_sum += b[j] * b[j]
        c_sum += c[j] * c[j]
        d_sum += d[j] * d[j]
    return np.float64(a_sum), np.float64(b_sum), np.float64(c_sum), np.float64(d_sum)


@njit(**FAST)
def measure_row(panel, exp_row, i, g, beta2, eps):
    """What is left when the rows of a panel are not a multiple of four."""
    cols = g.size
    exp_row[i] = decayed(exp_row[i], squares_of_row(g) / cols, beta2, eps)
    weight = g.dtype.type(1 / exp_row[i])
    for j in range(cols):
        panel[j] += g[j] * g[j]
        panel[cols + j] += g[j] * g[j] * weight


@njit(**FAST)
def squares_of_row(g):
    total = g.dtype.type(0)
    for j in range(g.size):
        total += g[j] * g[j]
    return np.float64(total)


@njit(**FAST)
def sum_of_squares(matrix, first_col, first, stop, cols):
    total = 0.0
    for i in range(first, stop - 3, 4):
        a_sq, b_sq, c_sq, d_sq = squares_of_rows(*four_rows(matrix, first_col, i, cols))
        total += (a_sq + b_sq) + (c_sq + d_sq)
    for i in range(stop - (stop - first) % 4, stop):
        total += squares_of_row(one_row(matrix, first_col, i, cols))
    return total


@njit(**FAST)
def subtract_scaled(p, g, col_root, row_step):
    for j in range(p.size):
        p[j] -= row_step * col_root[j] * g[j]


FACTORED = serial_and_parallel(factored_step_with)
