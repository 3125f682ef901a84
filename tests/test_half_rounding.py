"""Reading and rounding of single halves: every number, every instruction set, beside NumPy's own."""

import numpy as np
import pytest

import adafactor_native as an
from oracle import halves_reference as halves


def around(dtype):
    """Return float32 numbers: all of dtype, the middles between them, and neighbours of both."""
    with np.errstate(invalid="ignore"):
        values = np.sort(halves.all_halves(dtype).astype(np.float32))
    values = values[np.isfinite(values)]
    middles = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(np.float32)
    close = np.concatenate([values, middles])
    largest = np.finfo(np.float32).max
    return np.concatenate(
        [
            close,
            np.nextafter(close, np.float32(np.inf)),
            np.nextafter(close, np.float32(-np.inf)),
            np.float32([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, largest, -largest]),
        ]
    )


def copy_of(values, dtype, **options):
    """Return what a step that changes nothing writes to a copy."""
    copy = np.full(values.shape, 7, dtype)
    opt = an.Optimizer(
        [values],
        convention="numpy",
        copies=[copy],
        lr=0,
        scale_parameter=False,
        nonfinite="propagate",
        **options,
    )
    opt.step([np.ones(values.shape, np.float32)])
    return copy


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", halves.HALVES, ids=str)
def test_every_number_is_rounded_as_numpy_does(dtype):
    values = around(dtype)
    copy = copy_of(values.copy(), dtype)
    expected = halves.nearest(values, dtype)
    nan = np.isnan(values)
    assert np.isnan(copy[nan]).all()
    assert np.array_equal(halves.bits(copy[~nan]), halves.bits(expected[~nan]))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", halves.HALVES, ids=str)
def test_every_number_is_read_as_numpy_does(dtype):
    grad = halves.all_halves(dtype)
    grad = grad[np.isfinite(grad.astype(np.float32))]
    param = np.zeros(grad.shape, np.float32)
    opt = an.Optimizer(
        [param], convention="numpy", beta2=0.0, eps=0.0, lr=1.0, scale_parameter=False
    )
    with np.errstate(over="ignore"):
        squares = grad.astype(np.float64) ** 2
    opt.nonfinite = "propagate"
    opt.step([grad])
    assert np.array_equal(opt.state["0"]["v"], squares)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", halves.HALVES, ids=str)
@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_stochastic_rounding_is_the_references(dtype, seed):
    values = around(dtype)
    expected = halves.stochastic(values, dtype, halves.random_words(seed, 1, "0", values.size))
    copy = copy_of(values.copy(), dtype, rounding="stochastic", seed=seed)
    nan = np.isnan(values)
    assert np.isnan(copy[nan]).all()
    assert np.array_equal(halves.bits(copy[~nan]), halves.bits(expected[~nan]))


@pytest.mark.parametrize("dtype", halves.HALVES, ids=str)
@pytest.mark.parametrize("value", [1.0, 1e-3, 3e-7, 2e-8])
def test_stochastic_rounding_is_unbiased(dtype, value):
    """The mean of n roundings is within six standard errors of the number, at any part lost."""
    n = 2**20
    for lost in (1e-3, 0.1, 0.3, 0.5, 0.77, 0.999):
        below = halves.nearest(np.float32(value), dtype).astype(np.float64)
        above = np.nextafter(np.asarray(below, dtype), np.asarray(np.inf, dtype)).astype(np.float64)
        number = np.float32(below + lost * (above - below))
        copy = copy_of(np.full(n, number), dtype, rounding="stochastic", seed=5)
        assert set(np.unique(copy.astype(np.float64))) <= {float(below), float(above)}
        up = np.mean(copy.astype(np.float64) == above)
        share = (np.float64(number) - below) / (above - below)
        assert abs(up - share) <= 6 * np.sqrt(share * (1 - share) / n) + 2**-16


@pytest.mark.usefixtures("isa")
def test_split_halves_are_the_float():
    """param and low hold a float32 exactly; param is its nearest bfloat16, ties away from zero."""
    bf16 = halves.bfloat16
    param = halves.all_halves(bf16)
    param = param[np.isfinite(param.astype(np.float32))].copy()
    before = param.astype(np.float32)
    opt = an.Optimizer(
        [param],
        convention="numpy",
        masters="split",
        lr=1.0,
        scale_parameter=False,
        clip_threshold=None,
    )
    low = opt.state["0"]["low"]
    rng = np.random.default_rng(0)
    expected = before.copy()
    twin = an.Optimizer(
        [expected], convention="numpy", lr=1.0, scale_parameter=False, clip_threshold=None
    )
    for t in range(3):
        opt.param_groups[0]["lr"] = twin.param_groups[0]["lr"] = 10.0 ** -(t + 1)
        grad = rng.standard_normal(param.shape).astype(np.float32)
        opt.step([grad])
        twin.step([grad])
        word = expected.view(np.uint32)
        assert np.array_equal(halves.bits(param), ((word + 0x8000) >> 16).astype(np.uint16))
        assert np.array_equal(low, word.astype(np.uint16))
