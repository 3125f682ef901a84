"""Any shape, layout, dtype, hyper-parameters and size of the gradient, against the reference."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import adafactor_native as an
import reference
from buffers import LAYOUTS, Buffer
from compare import assert_step_matches, hyper_of, state_of
from problems import DTYPES, digest

settings.register_profile("ours", deadline=None, database=None, print_blob=True)
settings.load_profile("ours")

EPS = st.sampled_from([0.0, 1e-300, 1e-80, 1e-40, 1e-36, 1e-30, 1e-16, 1e-8, 1e-3, 1.0])
EVERY_EPS = EPS | st.floats(0, 1e3)
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
        beta2=draw(st.sampled_from([0.0, 0.5, 0.999]) | st.floats(0, 0.9999)),
        eps=draw(EVERY_EPS),
        clip_threshold=draw(st.sampled_from([None, 0.1, 1.0, 1e9]) | st.floats(1e-3, 1e3)),
        scale_parameter=draw(st.booleans()),
        num_threads=draw(st.integers(1, 4)),
    )
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
    return opt, param, grads


def assert_steps_match(opt, param, grads):
    """Each step is the reference's, or refused where the reference divides 0 by 0."""
    for grad in grads:
        expected, _ = reference.update(param.array, grad.array, state_of(opt), **hyper_of(opt))
        if np.isfinite(expected).all():
            if np.max(np.abs(expected), initial=0) > np.finfo(param.array.dtype).max:
                return  # to infinity in float32, by a clip_threshold of None
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
