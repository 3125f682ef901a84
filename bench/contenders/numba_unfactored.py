# mypy: ignore-errors
# numba compiles these loops; to mypy they are calls of unknown decorators.
"""numba's step of anything but a matrix: the full second moment."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from contenders.jit import FAST, decayed, serial_and_parallel


def unfactored_step_with(jit):
    measure_all, apply_all = jit(measure_unfactored), jit(apply_unfactored)

    @njit(**FAST)
    def step(param, grad, v, chunks, lr, beta2, eps, clip_threshold, scale_parameter):
        u_sq, param_sq = measure_all(param, grad, v, chunks, beta2, eps, scale_parameter)
        step_size = lr / max(1.0, np.sqrt(u_sq / v.size) / clip_threshold)
        if scale_parameter:
            step_size *= np.sqrt(param_sq / v.size)
        apply_all(param, grad, v, chunks, beta2, eps, step_size)

    return step


def measure_unfactored(param, grad, v, chunks, beta2, eps, scale):
    real = param.dtype.type
    u_sq, param_sq = np.zeros(chunks), np.zeros(chunks)
    for chunk in prange(chunks):
        p, g = chunk_of(param, chunk, chunks), chunk_of(grad, chunk, chunks)
        old_v = chunk_of(v, chunk, chunks)
        total = 0.0
        for i in range(g.size):
            new_v = decayed(old_v[i], square(g[i]), beta2, eps)
            u = g[i] / (np.sqrt(real(new_v)) + real(eps))
            total += square(u)
        u_sq[chunk] = total
        if scale:
            total = 0.0
            for i in range(p.size):
                total += square(p[i])
            param_sq[chunk] = total
    return u_sq.sum(), param_sq.sum()


def apply_unfactored(param, grad, v, chunks, beta2, eps, step_size):
    """Computes the new v again, rather than have the sweep before store it: one write less."""
    real = param.dtype.type
    for chunk in prange(chunks):
        p, g = chunk_of(param, chunk, chunks), chunk_of(grad, chunk, chunks)
        v_chunk = chunk_of(v, chunk, chunks)
        for i in range(p.size):
            new_v = decayed(v_chunk[i], square(g[i]), beta2, eps)
            v_chunk[i] = new_v
            p[i] -= real(step_size) * (g[i] / (np.sqrt(real(new_v)) + real(eps)))


@njit(**FAST)
def square(x):
    return np.float64(x) * np.float64(x)


@njit(**FAST)
def chunk_of(array, chunk, chunks):
    return array[chunk * array.size // chunks : (chunk + 1) * array.size // chunks]


UNFACTORED = serial_and_parallel(unfactored_step_with)
