"""Small problems with known answers, taken from a start far off to the answer."""

import numpy as np
import pytest

import adafactor_native as an
from arrays import DTYPES, normal


@pytest.mark.parametrize("scale_parameter", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (30,), (8, 5), (3, 4, 5)], ids=str)
def test_quadratic(shape, dtype, scale_parameter):
    """Sum of (param - target)^2 / 2, with a step that shrinks as 1/t."""
    target = normal(shape, dtype) + 3
    param = np.ones(shape, dtype)
    opt = an.AdaFactor(shape, scale_parameter=scale_parameter)
    for t in range(1, 2001):
        opt.lr = 1 / (t + 10)
        opt.update(param, param - target)
    np.testing.assert_allclose(param, target, rtol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_regression(dtype):
    """The weights of y = x W + b, from 200 noiseless examples."""
    weights, bias = normal((6, 4), dtype, seed=1), normal(4, dtype, seed=2)
    x = normal((200, 6), dtype, seed=3)
    y = x @ weights + bias
    w, b = np.full((6, 4), 0.1, dtype), np.full(4, 0.1, dtype)
    opt_w, opt_b = an.AdaFactor(w.shape, beta2=0.9), an.AdaFactor(b.shape, beta2=0.9)
    first = np.mean((x @ w + b - y) ** 2)
    for t in range(1, 3001):
        opt_w.lr = opt_b.lr = 10 / (t + 100)
        error = x @ w + b - y
        opt_w.update(w, x.T @ error / 200)
        opt_b.update(b, error.mean(axis=0))
    assert np.mean((x @ w + b - y) ** 2) < 1e-4 * first
    np.testing.assert_allclose(w, weights, atol=0.02)
    np.testing.assert_allclose(b, bias, atol=0.02)
