"""All or nothing: a step with a bad number in it says where, and changes not one bit."""

import re

import numpy as np
import pytest

from adafactor_native import Optimizer
from arrays import DTYPE_PAIRS, DTYPES, normal
from buffers import Buffer
from compare import assert_run_matches
from optimizers import digest_of_model
from oracle import halves_reference as halves
from oracle.seed import AdaFactor as Seed

BAD = [np.nan, np.inf, -np.inf]
ORDERS = ["C", "Fortran", "both reversed", "misaligned"]


def after_one_step(kind, shape, param_dtype=np.float32, grad_dtype=np.float32, layout="C", **hyper):
    """Return a run with a step behind it, and a good gradient."""
    run = kind(Buffer(normal(shape, param_dtype), layout).array, **hyper)
    grad = Buffer(normal(shape, grad_dtype, seed=1), layout).array
    run.step(grad)
    return run, grad


def assert_refused(run, grad, text):
    """In mode "raise" the step fails with this text, in mode "skip" it is counted."""
    before, grad_before, skipped = run.digest(), grad.tobytes(), run.skipped
    run.set(nonfinite="raise")
    with pytest.raises(FloatingPointError) as error:
        run.step(grad)
    assert text in str(error.value)
    assert run.skipped == skipped
    run.set(nonfinite="skip")
    run.step(grad)
    assert run.skipped == skipped + 1
    run.set(nonfinite="raise")
    assert run.digest() == before
    assert grad.tobytes() == grad_before


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
@pytest.mark.parametrize("shape", [(), (1,), (37,), (1, 1), (5, 19), (2, 3, 4)], ids=str)
def test_every_element_of_a_small_gradient(shape, dtypes, bad, isa, kind):
    run, grad = after_one_step(kind, shape, *dtypes)
    for index in np.ndindex(shape):
        good, grad[index] = grad[index], bad
        where = ", ".join(map(str, index)) or "()"
        assert_refused(run, grad, f"{run.grad_shown}[{where}] is {bad}, must be finite")
        grad[index] = good
    assert_run_matches(run, grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ORDERS)
def test_corners_and_block_edges_of_a_large_gradient(layout, dtype, isa, kind):
    shape = (135, 1030)
    run, grad = after_one_step(kind, shape, dtype, dtype, layout, num_threads=2)
    for i in (0, 63, 64, 127, 128, 134):
        for j in (0, 15, 16, 511, 1023, 1024, 1029):
            good, grad[i, j] = grad[i, j], np.nan
            assert_refused(run, grad, f"{run.grad_shown}[{i}, {j}] is nan, must be finite")
            grad[i, j] = good


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("layout", ORDERS)
def test_the_first_bad_element_is_named(layout, threads, kind):
    """First in the order of the index, wherever it lies in memory and whoever finds it."""
    shape = (1031, 517)
    run, grad = after_one_step(kind, shape, layout=layout, num_threads=threads)
    grad[1000, 3] = grad[700, 516] = np.nan
    grad[20, 400] = grad[20, 401] = np.inf
    assert_refused(run, grad, f"{run.grad_shown}[20, 400] is inf, must be finite")


@pytest.mark.parametrize("threads", [1, 7])
def test_the_first_bad_element_of_other_shapes(threads, kind):
    run, grad = after_one_step(kind, (300001,), num_threads=threads)
    grad[[299999, 123456]] = np.nan
    assert_refused(run, grad, f"{run.grad_shown}[123456] is nan")
    for layout in ("C", "Fortran"):
        run, grad = after_one_step(kind, (30, 40, 50), layout=layout, num_threads=threads)
        grad[29, 0, 0] = grad[3, 39, 2] = grad[3, 38, 49] = np.nan
        assert_refused(run, grad, f"{run.grad_shown}[3, 38, 49] is nan")


@pytest.mark.parametrize("shape, index", [((4, 5), (1, 2)), ((20,), (7,))], ids=str)
def test_a_square_that_overflows_float64_is_not_finite(shape, index, kind):
    run, grad = after_one_step(kind, shape, grad_dtype=np.float64)
    grad[index] = 1e200
    where = ", ".join(map(str, index))
    assert_refused(
        run, grad, f"{run.grad_shown}[{where}] is 1e+200, whose square overflows float64"
    )


@pytest.mark.parametrize("shape", [(20,), (5, 19), (2, 3, 4)], ids=str)
def test_squares_that_overflow_float64_when_added(shape, kind):
    run, grad = after_one_step(kind, shape, np.float64, np.float64)
    text = "the squares of {} add up to more than float64 holds"
    assert_refused(run, np.full(shape, 1e154), text.format(run.grad_shown))
    run.param[...] = 1e154
    assert_refused(run, grad, text.format(run.param_shown))


def test_the_largest_float32_is_finite(kind):
    run, grad = after_one_step(kind, (40, 50))
    grad[:] = np.finfo(np.float32).max
    assert_run_matches(run, grad)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
@pytest.mark.parametrize("shape", [(), (37,), (5, 19), (2, 3, 4)], ids=str)
def test_a_bad_parameter_counts_only_where_it_would_spread(shape, dtypes, bad, isa, kind):
    run, grad = after_one_step(kind, shape, *dtypes)
    for index in np.ndindex(shape):
        good, run.param[index] = run.param[index], bad
        where = ", ".join(map(str, index)) or "()"
        assert_refused(run, grad, f"{run.param_shown}[{where}] is {bad}, must be finite")
        run.param[index] = good

    last = tuple(n - 1 for n in shape)
    run.set(scale_parameter=False)
    twin = kind(run.param.copy(), scale_parameter=False)
    for name, array in run.state.items():
        twin.state[name][...] = array
    twin.step(grad)
    run.param[last] = bad
    run.step(grad)
    twin.param[last] = bad
    np.testing.assert_array_equal(run.param, twin.param)


def test_a_bad_gradient_is_named_before_a_bad_parameter(kind):
    run, grad = after_one_step(kind, (5, 19))
    run.param[0, 0] = grad[4, 18] = np.nan
    assert_refused(run, grad, f"{run.grad_shown}[4, 18] is nan")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape, dead", [((5, 19), np.s_[2]), ((5, 19), np.s_[:, 3]), ((20,), np.s_[7:9])], ids=str
)
def test_nothing_divided_by_nothing(shape, dead, dtype, kind):
    """eps=0 and a second moment of 0, where the seed computes 0/0."""
    run, grad = kind(normal(shape, dtype), eps=0.0), normal(shape, dtype, seed=1)
    grad[dead] = 0
    assert_refused(run, grad, "eps")
    run.set(eps=1e-30)
    assert_run_matches(run, grad)


def test_beta2_of_one_before_the_first_statistics(kind):
    run = kind(normal((5, 19)), beta2=1.0)
    assert_refused(run, normal((5, 19), seed=1), "are not finite, or ")


@pytest.mark.parametrize("eps", [0.0, 1e-30, 1e-3])
@pytest.mark.parametrize("bad", [*BAD, 0.0, 1e200])
@pytest.mark.parametrize("where", ["grad", "param"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (20,), (5, 19), (2, 3, 4)], ids=str)
def test_propagate_is_what_the_seed_does(shape, dtype, where, bad, eps, isa, kind):
    """A matrix becomes all NaN; of a vector one element, and the rest moves without a clip."""
    param, grad = normal(shape, dtype), normal(shape, dtype, seed=1)
    run, seed = kind(param, eps=eps, nonfinite="propagate"), Seed(shape, eps=eps)
    with np.errstate(over="ignore"):
        {"param": param, "grad": grad}[where].flat[-1] = bad
    expected = param.astype(np.float64)
    rtol = 1e-6 if dtype == np.float32 else 1e-12
    for t in (1, 2):  # after the second, a bad vector has spread through RMS(param)
        with np.errstate(all="ignore"):
            expected = seed.update(expected, grad.astype(np.float64))
        run.step(grad)
        assert (run.t, run.skipped) == (t, 0)
        np.testing.assert_allclose(param, expected, rtol=rtol)
        for name, array in run.state.items():
            np.testing.assert_allclose(array, getattr(seed, name), rtol=rtol)


def test_skip_then_go_on(kind):
    """A skipped step is as if it had not been asked for."""
    run, grad = after_one_step(kind, (5, 19), nonfinite="skip")
    other, _ = after_one_step(kind, (5, 19))
    run.step(np.full((5, 19), np.nan))
    assert (run.t, run.skipped) == (1, 1)
    run.step(grad)
    other.step(grad)
    assert run.digest() == other.digest()


SHAPES = {"w": (4, 5), "b": (5,), "k": (2, 3, 4), "s": ()}


def new_params(dtype=np.float32, seed=0):
    return {
        name: normal(shape, dtype, seed=seed + 10 * i)
        for i, (name, shape) in enumerate(SHAPES.items())
    }


def gradients_with_a_nan():
    bad = new_params(seed=1)
    bad["k"][1, 2, 3] = np.nan
    return bad


def test_of_a_model_nothing_is_stepped_or_all_that_is_propagated():
    opt, bad = Optimizer(new_params(), convention="torch"), gradients_with_a_nan()
    opt.step(new_params(seed=1))
    before = digest_of_model(opt)
    with pytest.raises(
        FloatingPointError, match=r"^grads\['k'\]\[1, 2, 3\] is nan, must be finite"
    ):
        opt.step(bad)
    assert digest_of_model(opt) == before
    opt.nonfinite = "skip"
    params = [param.tobytes() for param in opt.params.values()]
    report = opt.step(bad)
    assert report.skipped and not report.stepped.any()
    assert [param.tobytes() for param in opt.params.values()] == params
    assert (opt.t, opt.skipped) == (1, 1)
    opt.nonfinite = "propagate"
    assert opt.step(bad).skipped is False
    assert np.isnan(opt.params["k"]).any() and opt.t == 2


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_a_step_that_is_left_out_reports_of_all_tensors(dead):
    """Tensors so large that each is measured in a turn of its own."""
    params = {str(k): normal((700, 600), seed=k) for k in range(3)}
    grads = {str(k): normal((700, 600), seed=k + 3) for k in range(3)}
    grads[str(dead)][5] = 0
    opt = Optimizer(params, convention="numpy", eps=0, nonfinite="skip")
    report = opt.step(grads)
    assert report.skipped and not report.stepped.any()
    squares = [np.square(grad, dtype=np.float64) for grad in grads.values()]
    np.testing.assert_allclose(report.grad_norm, np.sqrt(np.sum(squares)), rtol=1e-6)
    np.testing.assert_allclose(report.rms_grad, [np.sqrt(x.mean()) for x in squares], rtol=1e-6)


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_of_atomic_tensors_those_before_or_all_others_are_stepped(nonfinite):
    good = Optimizer(new_params(), convention="torch", atomic="tensor")
    good.step(new_params(seed=1))
    opt = Optimizer(new_params(), convention="torch", atomic="tensor", nonfinite=nonfinite)
    if nonfinite == "raise":
        with pytest.raises(FloatingPointError, match=re.escape("grads['k'][1, 2, 3] is nan")):
            opt.step(gradients_with_a_nan())
        stepped, skipped = [1, 1, 0, 0], 0
    else:
        report = opt.step(gradients_with_a_nan())
        stepped, skipped = [1, 1, 0, 1], 1
        assert report.skipped and report.stepped.tolist() == list(map(bool, stepped))
    assert (opt.t, opt.skipped, opt.counts.tolist()) == (1, skipped, stepped)
    for (name, start), is_stepped in zip(new_params().items(), stepped):
        expected = good.params[name] if is_stepped else start
        assert opt.params[name].tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", halves.HALVES, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_half_is_named_and_changes_nothing(dtype, bad):
    params = {"a": normal((300, 40), dtype), "b": normal((50,), dtype)}
    grads = {name: normal(param.shape, dtype, seed=1) for name, param in params.items()}
    opt = Optimizer(
        params,
        convention="numpy",
        masters="float32",
        beta1=0.9,
        momentum_dtype="bfloat16",
    )
    opt.step(grads)
    before = {key: array.tobytes() for key, array in opt.state_dict(params=True).items()}
    grads["b"][17] = bad
    with pytest.raises(FloatingPointError, match=rf"grads\['b'\]\[17\] is {bad}, must be finite"):
        opt.step(grads)
    assert {k: array.tobytes() for k, array in opt.state_dict(params=True).items()} == before
