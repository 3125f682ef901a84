# mypy: ignore-errors
# numba compiles these loops; to mypy they are calls of unknown decorators.
"""The machine's roof: the least that any step must do, on the same threads as the contenders."""

from __future__ import annotations

import numpy as np
from numba import get_num_threads, njit, prange

from contenders.jit import FAST, SERIAL_SIZE
from problems import Array

# Per thread, four pieces of 16 kB are worked on side by side: one stream leaves much of the memory's
# bandwidth unused (measured on Sapphire Rapids: reading 1.4 times faster with four, the floor 1.1).
STREAM = 1 << 12
BLOCK = 4 * STREAM


class Floor:
    """`param -= k * grad`: every byte that an in-place step must move, once; 12 bytes in float32."""

    def __init__(self, k: float) -> None:
        self.k = k

    def update(self, param: Array, grad: Array) -> Array:
        subtract = on_threads_for(param, subtract_scaled)
        subtract(flat(param), flat(grad), param.dtype.type(self.k))
        return param


class NumpyFloor:
    def __init__(self, k: float) -> None:
        self.k = k

    def update(self, param: Array, grad: Array) -> Array:
        param -= self.k * grad
        return param


def read(param: Array, grad: Array) -> Array:
    """The mean of the gradient, left in the first parameter: one read and nothing else."""
    sums = on_threads_for(grad, block_sums)(flat(grad))
    param.flat[0] = sums.sum() / grad.size
    return param


def numpy_read(param: Array, grad: Array) -> Array:
    param.flat[0] = grad.mean()
    return param


def on_threads_for(array, kernel):
    return COMPILED[kernel, array.size >= SERIAL_SIZE and get_num_threads() > 1]


def flat(array):
    return array.ravel(order="K")  # a view, since the arrays are contiguous in one order


@njit(**FAST)
def four_streams(array, block):
    """Slices: with indices into the whole array LLVM keeps numba's checks for negative ones."""
    part = array[block * BLOCK : min(array.size, (block + 1) * BLOCK)]
    quarter = part.size // 4
    a, b = part[:quarter], part[quarter : 2 * quarter]
    c, d = part[2 * quarter : 3 * quarter], part[3 * quarter :]
    return a, b, c, d


def subtract_scaled(param, grad, k):
    for block in prange((param.size + BLOCK - 1) // BLOCK):
        p0, p1, p2, p3 = four_streams(param, block)
        g0, g1, g2, g3 = four_streams(grad, block)
        for i in range(p0.size):
            p0[i] -= k * g0[i]
            p1[i] -= k * g1[i]
            p2[i] -= k * g2[i]
            p3[i] -= k * g3[i]
        for i in range(p0.size, p3.size):
            p3[i] -= k * g3[i]


def block_sums(grad):
    sums = np.empty((grad.size + BLOCK - 1) // BLOCK)
    for block in prange(sums.size):
        a, b, c, d = four_streams(grad, block)
        total = grad.dtype.type(0)
        for i in range(a.size):
            total += (a[i] + b[i]) + (c[i] + d[i])
        for i in range(a.size, d.size):
            total += d[i]
        sums[block] = total
    return sums


COMPILED = {
    (kernel, parallel): njit(kernel, parallel=parallel, **FAST)
    for kernel in (subtract_scaled, block_sums)
    for parallel in (False, True)
}
