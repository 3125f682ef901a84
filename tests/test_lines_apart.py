"""Lines of a gradient whose squares float32 cannot hold beside lines whose it can: they count all the same.

Found by fuzz/steps.py: a column of such elements in rows that are large enough by themselves was taken
for one of zeros, and RMS(u), which it may be all of, for that of the others.
"""

import numpy as np
import pytest

from adafactor_native import AdaFactor, Optimizer
from buffers import Buffer
from oracle import array_reference, switches_reference
from oracle.halves_reference import bfloat16

# Panels of rows, tiles of columns, several groups of both, and their tails.
SHAPES = [(8, 8), (67, 19), (4, 3000), (3000, 4), (130, 257), (40, 1500), (2, 70001), (70001, 2)]
SIZES = [5e-20, 5e-23, 1e-23, 1e-24, 1e-40]


def gradient(shape, size, line, axis):
    """Hundreds but for a line of 1e-16 along an axis, and one across it that is `size` throughout."""
    grad = np.full(shape, 1e2)
    np.moveaxis(grad, axis, 0)[line % shape[axis]] = 1e-16
    np.moveaxis(grad, 1 - axis, 0)[line % shape[1 - axis]] = size
    return grad


@pytest.mark.parametrize("order", ["C", "Fortran"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_line_that_underflows_counts(shape, size, axis, order, isa):
    for line in (0, -1):
        grad = Buffer(gradient(shape, size, line, axis).astype(np.float32), order).array
        param = np.ones(shape, np.float32)
        opt = AdaFactor(shape)
        state = array_reference.State(0, opt.exp_row.copy(), opt.exp_col.copy(), None)
        expected, _ = array_reference.update(param, grad, state)
        opt.update(param, grad)
        np.testing.assert_allclose(param, expected, 1e-6, 1e-7)


@pytest.mark.parametrize("dtype", [np.float32, bfloat16], ids=str)
@pytest.mark.parametrize("scale", [3e16, 1e-3])
def test_rows_so_large_that_weighted_squares_underflow(scale, dtype):
    """Half of the columns are 33 orders of magnitude below the others; u is about 1 in all."""
    rng = np.random.default_rng(0)
    grad = rng.standard_normal((100, 60)) * scale
    grad[:, ::2] *= 1e-33
    grad = grad.astype(np.float32).astype(dtype)
    param = np.ones((100, 60), np.float32)
    opt = Optimizer([param], "numpy", lr=0.1, eps=1e-35, clip_threshold=0.5)
    expected, _ = switches_reference.step(
        param, grad, switches_reference.State(), lr=0.1, eps=1e-35, clip_threshold=0.5
    )
    report = opt.step([grad])
    np.testing.assert_allclose(param, expected, 2e-6)
    assert report.rms_u[0] > 0.5


def test_columns_of_zeros_are_zeros():
    """They need no wider sums, and get none: the same bits as without them."""
    rng = np.random.default_rng(1)
    grad = rng.standard_normal((64, 32)).astype(np.float32)
    wide = np.zeros((64, 64), np.float32)
    wide[:, :32] = grad
    opt, other = AdaFactor((64, 64)), AdaFactor((64, 32))
    opt.update(np.ones((64, 64), np.float32), wide)
    other.update(np.ones((64, 32), np.float32), grad)
    assert opt.exp_col[:32].tobytes() == other.exp_col.tobytes()
