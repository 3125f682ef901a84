"""Adafactor in numba, written as well as we can: the strong rival.

It gets what the package has: two sweeps and the separable RMS(u); sums in the parameter's own
precision inside a panel of rows, in float64 across panels; float64 state, as plain_numpy keeps it.
It gets what the package denies itself: freedom to reorder sums and to fuse multiply and add, code
for exactly this processor, chunks cut by the number of threads, and no search for infinities and
NaN before the first write.
"""

from __future__ import annotations

import numpy as np
from numba import get_num_threads

from contenders.jit import SERIAL_SIZE
from contenders.numba_factored import FACTORED
from contenders.numba_unfactored import UNFACTORED
from problems import Array


class NumbaAdaFactor:
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
        threads = get_num_threads() if param.size >= SERIAL_SIZE else 1
        self.chunks, parallel = threads, threads > 1
        self.factored = param.ndim == 2
        if self.factored:
            self.step = FACTORED[parallel]
            rows, cols = param.T.shape if param.flags.fnc else param.shape
            self.exp_row, self.exp_col = np.zeros(rows), np.zeros(cols)
            self.chunk_sums = np.zeros((self.chunks, 2, cols))
            self.panel_sums = np.zeros((self.chunks, 2 * cols), param.dtype)
        else:
            self.step = UNFACTORED[parallel]
            self.v = np.zeros(param.size)

    def update(self, param: Array, grad: Array) -> Array:
        hyper = self.lr, self.beta2, self.eps, self.clip_threshold, self.scale_parameter
        if self.factored:
            state = self.exp_row, self.exp_col, self.chunk_sums, self.panel_sums
            self.step(*as_rows(param), *as_rows(grad), *state, *hyper)
        else:
            self.step(param.reshape(-1), grad.reshape(-1), self.v, self.chunks, *hyper)
        return param


def as_rows(matrix: Array) -> tuple[Array, int]:
    """A matrix as (C-contiguous base, first column): the only form that numba vectorizes.

    Given a view with a stride between its rows, it allows for one between its elements too.
    """
    if matrix.flags.c_contiguous:
        return matrix, 0
    if matrix.flags.f_contiguous:
        return matrix.T, 0
    base = matrix.base
    assert base is not None, "neither contiguous nor a view of columns"
    return base, (matrix.ctypes.data - base.ctypes.data) // matrix.itemsize
