"""All or nothing: a step with a bad number in it says where, and changes not one bit."""

import numpy as np
import pytest

import adafactor_native as an
from buffers import Buffer
from compare import assert_step_matches
from problems import DTYPE_PAIRS, DTYPES, digest, normal
from seed import AdaFactor as Seed

BAD = [np.nan, np.inf, -np.inf]
ORDERS = ["C", "Fortran", "both reversed", "misaligned"]


def after_one_step(shape, param_dtype=np.float32, grad_dtype=np.float32, layout="C", **hyper):
    """Return an optimizer with a step behind it, its param, and a good gradient."""
    opt = an.AdaFactor(shape, **hyper)
    param = Buffer(normal(shape, param_dtype), layout).array
    grad = Buffer(normal(shape, grad_dtype, seed=1), layout).array
    opt.update(param, grad)
    return opt, param, grad


def assert_refused(opt, param, grad, text):
    """In mode "raise" the step fails with this text, in mode "skip" it is counted."""
    before, grad_before, skipped = digest(opt, param), grad.tobytes(), opt.skipped
    opt.nonfinite = "raise"
    with pytest.raises(FloatingPointError) as error:
        opt.update(param, grad)
    assert text in str(error.value)
    assert opt.skipped == skipped
    opt.nonfinite = "skip"
    assert opt.update(param, grad) is param
    assert opt.skipped == skipped + 1
    opt.nonfinite = "raise"
    assert digest(opt, param) == before
    assert grad.tobytes() == grad_before


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
@pytest.mark.parametrize("shape", [(), (1,), (37,), (1, 1), (5, 19), (2, 3, 4)], ids=str)
def test_every_element_of_a_small_gradient(shape, dtypes, bad, isa):
    opt, param, grad = after_one_step(shape, *dtypes)
    for index in np.ndindex(shape):
        good, grad[index] = grad[index], bad
        where = ", ".join(map(str, index)) or "()"
        assert_refused(opt, param, grad, f"grad[{where}] is {bad}, must be finite")
        grad[index] = good
    assert_step_matches(opt, param, grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ORDERS)
def test_corners_and_block_edges_of_a_large_gradient(layout, dtype, isa):
    shape = (135, 1030)
    opt, param, grad = after_one_step(shape, dtype, dtype, layout, num_threads=2)
    for i in (0, 63, 64, 127, 128, 134):
        for j in (0, 15, 16, 511, 1023, 1024, 1029):
            good, grad[i, j] = grad[i, j], np.nan
            assert_refused(opt, param, grad, f"grad[{i}, {j}] is nan, must be finite")
            grad[i, j] = good


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("layout", ORDERS)
def test_the_first_bad_element_is_named(layout, threads):
    """First in the order of the index, wherever it lies in memory and whoever finds it."""
    shape = (1031, 517)
    opt, param, grad = after_one_step(shape, layout=layout, num_threads=threads)
    grad[1000, 3] = grad[700, 516] = np.nan
    grad[20, 400] = grad[20, 401] = np.inf
    assert_refused(opt, param, grad, "grad[20, 400] is inf, must be finite")


@pytest.mark.parametrize("threads", [1, 7])
def test_the_first_bad_element_of_other_shapes(threads):
    opt, param, grad = after_one_step((300001,), num_threads=threads)
    grad[[299999, 123456]] = np.nan
    assert_refused(opt, param, grad, "grad[123456] is nan")
    for layout in ("C", "Fortran"):
        opt, param, grad = after_one_step((30, 40, 50), layout=layout, num_threads=threads)
        grad[29, 0, 0] = grad[3, 39, 2] = grad[3, 38, 49] = np.nan
        assert_refused(opt, param, grad, "grad[3, 38, 49] is nan")


@pytest.mark.parametrize("shape, index", [((4, 5), (1, 2)), ((20,), (7,))], ids=str)
def test_a_square_that_overflows_float64_is_not_finite(shape, index):
    opt, param, grad = after_one_step(shape, grad_dtype=np.float64)
    grad[index] = 1e200
    where = ", ".join(map(str, index))
    assert_refused(opt, param, grad, f"grad[{where}] is 1e+200, whose square overflows float64")


@pytest.mark.parametrize("shape", [(20,), (5, 19), (2, 3, 4)], ids=str)
def test_squares_that_overflow_float64_when_added(shape):
    opt, param, grad = after_one_step(shape, np.float64, np.float64)
    text = "the squares of {} add up to more than float64 holds"
    assert_refused(opt, param, np.full(shape, 1e154), text.format("grad"))
    param[...] = 1e154
    assert_refused(opt, param, grad, text.format("param"))


def test_the_largest_float32_is_finite():
    opt, param, grad = after_one_step((40, 50))
    grad[:] = np.finfo(np.float32).max
    assert_step_matches(opt, param, grad)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
@pytest.mark.parametrize("shape", [(), (37,), (5, 19), (2, 3, 4)], ids=str)
def test_a_bad_parameter_counts_only_where_it_would_spread(shape, dtypes, bad, isa):
    opt, param, grad = after_one_step(shape, *dtypes)
    for index in np.ndindex(shape):
        good, param[index] = param[index], bad
        where = ", ".join(map(str, index)) or "()"
        assert_refused(opt, param, grad, f"param[{where}] is {bad}, must be finite")
        param[index] = good

    last = tuple(n - 1 for n in shape)
    opt.scale_parameter = False
    twin = an.AdaFactor(shape, scale_parameter=False)
    for name in ("exp_row", "exp_col") if opt.factored else ("v",):
        getattr(twin, name)[...] = getattr(opt, name)
    alone = param.copy()
    twin.update(alone, grad)
    param[last] = alone[last] = bad
    opt.update(param, grad)
    np.testing.assert_array_equal(param, alone)


def test_a_bad_gradient_is_named_before_a_bad_parameter():
    opt, param, grad = after_one_step((5, 19))
    param[0, 0] = grad[4, 18] = np.nan
    assert_refused(opt, param, grad, "grad[4, 18] is nan")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape, dead", [((5, 19), np.s_[2]), ((5, 19), np.s_[:, 3]), ((20,), np.s_[7:9])], ids=str
)
def test_nothing_divided_by_nothing(shape, dead, dtype):
    """eps=0 and a second moment of 0, where the seed computes 0/0."""
    opt, param = an.AdaFactor(shape, eps=0.0), normal(shape, dtype)
    grad = normal(shape, dtype, seed=1)
    grad[dead] = 0
    assert_refused(opt, param, grad, "eps")
    opt.eps = 1e-30
    assert_step_matches(opt, param, grad)


def test_beta2_of_one_before_the_first_statistics():
    opt, param = an.AdaFactor((5, 19), beta2=1.0), normal((5, 19))
    assert_refused(opt, param, normal((5, 19), seed=1), "")


@pytest.mark.parametrize("eps", [0.0, 1e-30, 1e-3])
@pytest.mark.parametrize("bad", [*BAD, 0.0, 1e200])
@pytest.mark.parametrize("where", ["grad", "param"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (20,), (5, 19), (2, 3, 4)], ids=str)
def test_propagate_is_what_the_seed_does(shape, dtype, where, bad, eps, isa):
    """A matrix becomes all NaN; of a vector one element, and the rest moves without a clip."""
    opt, seed = an.AdaFactor(shape, eps=eps, nonfinite="propagate"), Seed(shape, eps=eps)
    param, grad = normal(shape, dtype), normal(shape, dtype, seed=1)
    with np.errstate(over="ignore"):
        {"param": param, "grad": grad}[where].flat[-1] = bad
    expected = param.astype(np.float64)
    rtol = 1e-6 if dtype == np.float32 else 1e-12
    for t in (1, 2):  # after the second, a bad vector has spread through RMS(param)
        with np.errstate(all="ignore"):
            expected = seed.update(expected, grad.astype(np.float64))
        assert opt.update(param, grad) is param
        assert (opt.t, opt.skipped) == (t, 0)
        np.testing.assert_allclose(param, expected, rtol=rtol)
        for name in ("exp_row", "exp_col") if opt.factored else ("v",):
            np.testing.assert_allclose(getattr(opt, name), getattr(seed, name), rtol=rtol)


def test_skip_then_go_on():
    """A skipped step is as if it had not been asked for."""
    opt, param, grad = after_one_step((5, 19), nonfinite="skip")
    other, same, _ = after_one_step((5, 19))
    opt.update(param, np.full((5, 19), np.nan))
    assert (opt.t, opt.skipped) == (1, 1)
    opt.update(param, grad)
    other.update(same, grad)
    assert digest(opt, param) == digest(other, same)
