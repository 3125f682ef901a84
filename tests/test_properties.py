"""Any shape, layout, dtype, hyper-parameters and size of the gradient, against the reference."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import adafactor_native as an
from arrays import DTYPES
from buffers import LAYOUTS, Buffer
from compare import assert_step_matches, budget_of_param, hyper_of, largest, state_of
from optimizers import digest, digest_of_model
from oracle import array_reference, switches_reference

settings.register_profile("ours", deadline=None, database=None, print_blob=True)
settings.load_profile("ours")

EPS = st.sampled_from([0.0, 1e-300, 1e-80, 1e-40, 1e-36, 1e-30, 1e-16, 1e-8, 1e-3, 1.0])
EVERY_EPS = EPS | st.floats(0, 1e3)
EVERY_BETA2 = st.sampled_from([0.0, 1e-300, 1e-100, 0.5, 0.999]) | st.floats(0, 0.9999)
SHAPES = st.one_of(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.tuples(st.integers(1, 5), st.integers(1, 2500)),
    st.tuples(st.integers(1, 2500), st.integers(1, 5)),
    st.tuples(st.integers(1, 3000)),
    st.lists(st.integers(1, 9), max_size=5).filter(lambda axes: len(axes) > 2).map(tuple),
    st.just(()),
)


@st.composite
def runs(draw, sizes):
    """An optimizer, a param in a buffer, and three gradients in buffers."""
    shape = draw(SHAPES)
    opt = an.AdaFactor(
        shape,
        lr=draw(st.sampled_from([0.0, 1e-3, 1.0]) | st.floats(0, 10)),
        beta2=draw(EVERY_BETA2),
        eps=draw(EVERY_EPS),
        clip_threshold=draw(st.sampled_from([None, 0.1, 1.0, 1e9]) | st.floats(1e-3, 1e3)),
        scale_parameter=draw(st.booleans()),
        num_threads=draw(st.integers(1, 4)),
    )
    return opt, *draw(params_and_grads(shape, sizes))


@st.composite
def params_and_grads(draw, shape, sizes):
    """A param in a buffer, and three gradients in buffers, with zeros, dead rows and columns."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    layout = st.sampled_from(sorted(LAYOUTS))
    dtypes = [draw(st.sampled_from(DTYPES)) for _ in range(2)]
    param = Buffer(rng.standard_normal(shape).astype(dtypes[0]), draw(layout))
    grads = []
    for _ in range(3):
        grad = rng.standard_normal(shape) * 10.0 ** draw(sizes)
        zeros = rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))
        dead = [rng.random(n) < draw(st.sampled_from([0.0, 0.5])) for n in shape]
        grad = np.where(zeros, 0.0, grad)
        for axis, lines in enumerate(dead):
            np.moveaxis(grad, axis, 0)[lines] = 0
        grads.append(Buffer(grad.astype(dtypes[1]), draw(layout)))
    return param, grads


def leaves_range(expected, dtype):
    """Whether param becomes infinite in float32, by a clip_threshold of None."""
    return largest(expected) > float(np.finfo(dtype).max)


def assert_steps_match(opt, param, grads):
    """Each step is the reference's, or refused where the reference divides 0 by 0."""
    for grad in grads:
        expected, _ = array_reference.update(
            param.array, grad.array, state_of(opt), **hyper_of(opt)
        )
        if np.isfinite(expected).all():
            if leaves_range(expected, param.array.dtype):
                return
            assert_step_matches(opt, param.array, grad.array)
        else:
            before = digest(opt, param.array)
            with pytest.raises(FloatingPointError):
                opt.update(param.array, grad.array)
            assert digest(opt, param.array) == before
        param.assert_guards_intact()


@given(runs(st.integers(-12, 6)))
@settings(max_examples=250)
def test_steps_match_reference(run):
    assert_steps_match(*run)


@given(runs(st.sampled_from([-44, -38, -30, -25, -19, 15, 18, 19, 25, 30, 36])))
@settings(max_examples=250)
def test_extreme_gradients(run):
    """Sizes whose squares float32 cannot hold, one after the other."""
    assert_steps_match(*run)


@pytest.mark.soak
@given(runs(st.integers(-30, 30)))
@settings(max_examples=5000, suppress_health_check=list(HealthCheck))
def test_steps_match_reference_at_length(run):
    assert_steps_match(*run)


BATCHES = st.one_of(
    st.tuples(st.integers(1, 30), st.integers(1, 4), st.integers(1, 4)),
    st.tuples(*[st.integers(1, 6)] * 4),
    st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)),
)


@st.composite
def runs_of_batches(draw):
    """The switches of an Optimizer, a param in a buffer, and three gradients in buffers."""
    switches = {
        "factored_axes": "last_two",
        "beta2": draw(EVERY_BETA2),
        "eps": draw(EPS),
        "eps_mode": draw(st.sampled_from(["both", "grad_squared", "clamp", "root"])),
        "clip_threshold": draw(st.sampled_from([None, 0.1, 1.0])),
        "rms_scope": draw(st.sampled_from(["tensor", "matrix"])),
        "scale_parameter": draw(st.booleans()),
    }
    sizes = st.integers(-30, 30)
    return switches, *draw(params_and_grads(draw(BATCHES), sizes))


def assert_batches_match(switches, param, grads):
    """As assert_steps_match, for Optimizer."""
    opt = an.Optimizer([param.array], convention="numpy", **switches)
    kept = opt.state["0"]
    for grad in grads:
        state = switches_reference.State(kept["exp_row"][..., None], kept["exp_col"][..., None, :])
        expected, _ = switches_reference.step(param.array, grad.array, state, **switches)
        if np.isfinite(expected).all():
            if leaves_range(expected, param.array.dtype):
                return
            before = np.array(param.array, np.float64)
            opt.step([grad.array])
            error = np.abs(param.array - expected)
            assert largest(error / budget_of_param(param.array, before, expected)) <= 1
        else:
            before = digest_of_model(opt)
            with pytest.raises(FloatingPointError):
                opt.step([grad.array])
            assert digest_of_model(opt) == before
        param.assert_guards_intact()


@given(runs_of_batches())
@settings(max_examples=250)
def test_batches_match_reference(run):
    assert_batches_match(*run)


@pytest.mark.soak
@given(runs_of_batches())
@settings(max_examples=5000, suppress_health_check=list(HealthCheck))
def test_batches_match_reference_at_length(run):
    assert_batches_match(*run)
