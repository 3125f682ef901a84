# mypy: ignore-errors
# numba compiles these loops; to mypy they are calls of unknown decorators.
"""The machine's roof: the least that any step must do, on the same threads as the contenders.

A machine has a way of walking through memory that it likes best, so each loop is there in several,
and the fastest of a run counts: four streams side by side (best on Sapphire Rapids), one stream (best
on Zen 4), and one stream that asks for its lines ahead of time.
"""

from __future__ import annotations

import numpy as np
from numba import get_num_threads, njit, prange

from contenders.jit import FAST, SERIAL_SIZE, prefetch
from problems import Array

# A thread has blocks of 64 KB of float32; of four streams, each has a quarter.
BLOCK = 1 << 14
RUN = 512  # elements whose lines are asked for at once
AHEAD = 1 << 10  # elements: 4 KB of float32


class Floor:
    """`param -= k * grad`: every byte that an in-place step must move, once; 12 bytes in float32."""

    def __init__(self, loop, k: float) -> None:
        self.loop = loop
        self.k = k

    def update(self, param: Array, grad: Array) -> Array:
        subtract = on_threads_for(param, self.loop)
        subtract(flat(param), flat(grad), param.dtype.type(self.k))
        return param


class NumpyFloor:
    def __init__(self, k: float) -> None:
        self.k = k

    def update(self, param: Array, grad: Array) -> Array:
        param -= self.k * grad
        return param


class Read:
    """The mean of the gradient, left in the first parameter: one read and nothing else."""

    def __init__(self, loop) -> None:
        self.loop = loop

    def update(self, param: Array, grad: Array) -> Array:
        sums = on_threads_for(grad, self.loop)(flat(grad))
        param.flat[0] = sums.sum() / grad.size
        return param


def numpy_read(param: Array, grad: Array) -> Array:
    param.flat[0] = grad.mean()
    return param


def read_whole(array: Array) -> None:
    on_threads_for(array, sum_in_one_stream)(array)


def on_threads_for(array, kernel):
    return COMPILED[kernel, array.size >= SERIAL_SIZE and get_num_threads() > 1]


def flat(array):
    return array.ravel(order="K")  # a view, since the arrays are contiguous in one order


@njit(**FAST)
def block_of(array, block):
    """Slices: with indices into the whole array LLVM keeps numba's checks for negative ones."""
    return array[block * BLOCK : min(array.size, (block + 1) * BLOCK)]


@njit(**FAST)
def four_streams(array, block):
    part = block_of(array, block)
    quarter = part.size // 4
    a, b = part[:quarter], part[quarter : 2 * quarter]
    c, d = part[2 * quarter : 3 * quarter], part[3 * quarter :]
    return a, b, c, d


def subtract_in_four_streams(param, grad, k):
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


def subtract_in_one_stream(param, grad, k):
    for block in prange((param.size + BLOCK - 1) // BLOCK):
        p, g = block_of(param, block), block_of(grad, block)
        for i in range(p.size):
            p[i] -= k * g[i]


def subtract_prefetched(param, grad, k):
    for block in prange((param.size + BLOCK - 1) // BLOCK):
        p, g = block_of(param, block), block_of(grad, block)
        for begin in range(0, p.size, RUN):
            prefetch_run(p, begin)
            prefetch_run(g, begin)
            p_run, g_run = p[begin : begin + RUN], g[begin : begin + RUN]
            for i in range(p_run.size):
                p_run[i] -= k * g_run[i]


def sum_in_four_streams(grad):
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


def sum_in_one_stream(grad):
    sums = np.empty((grad.size + BLOCK - 1) // BLOCK)
    for block in prange(sums.size):
        part = block_of(grad, block)
        total = grad.dtype.type(0)
        for i in range(part.size):
            total += part[i]
        sums[block] = total
    return sums


def sum_prefetched(grad):
    sums = np.empty((grad.size + BLOCK - 1) // BLOCK)
    for block in prange(sums.size):
        part = block_of(grad, block)
        total = grad.dtype.type(0)
        for begin in range(0, part.size, RUN):
            prefetch_run(part, begin)
            run = part[begin : begin + RUN]
            for i in range(run.size):
                total += run[i]
        sums[block] = total
    return sums


@njit(**FAST)
def prefetch_run(array, begin):
    """A line of 64 bytes after the other, beyond the array's end too: a hint never faults."""
    for i in range(begin + AHEAD, begin + AHEAD + RUN, 64 // array.itemsize):
        prefetch(array, i)


FLOORS = (subtract_in_four_streams, subtract_in_one_stream, subtract_prefetched)
READS = (sum_in_four_streams, sum_in_one_stream, sum_prefetched)
COMPILED = {
    (kernel, parallel): njit(kernel, parallel=parallel, **FAST)
    for kernel in (*FLOORS, *READS)
    for parallel in (False, True)
}
