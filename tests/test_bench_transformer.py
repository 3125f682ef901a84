"""The gradients of bench/examples/transformer.py, which are derived by hand, against finite differences."""

import numpy as np
import pytest

from examples import transformer

SIZE = transformer.Size(characters=7, context=6, width=8, heads=2, blocks=2)
STEP = 1e-6
BATCH, LENGTH = 3, 5  # shorter than the context


@pytest.fixture
def params():
    """Return parameters in float64, none of them zero: then every gain and bias has an effect."""
    rng = np.random.default_rng(0)
    params = transformer.initial_params(SIZE, rng, np.float64)
    return {name: param + 0.3 * rng.standard_normal(param.shape) for name, param in params.items()}


@pytest.fixture
def batch():
    """Return some text and the characters that follow."""
    written = np.random.default_rng(1).integers(SIZE.characters, size=(BATCH, LENGTH + 1))
    return written[:, :-1], written[:, 1:]


def test_gradients_are_the_slopes_of_the_loss(params, batch):
    """Along a random direction in each tensor."""
    _, grads = transformer.loss_and_grads(params, *batch)
    rng = np.random.default_rng(2)
    for name, param in params.items():
        direction = rng.standard_normal(param.shape)
        ahead, behind = (
            transformer.loss({**params, name: param + step * direction}, *batch)
            for step in (STEP, -STEP)
        )
        slope = (ahead - behind) / (2 * STEP)
        assert np.vdot(grads[name], direction) == pytest.approx(slope, rel=1e-6, abs=1e-9), name


def test_every_parameter_has_a_gradient_of_its_shape_and_dtype(params, batch):
    """In the order of the parameters, in float32 too."""
    params = {name: param.astype(np.float32) for name, param in params.items()}
    loss, grads = transformer.loss_and_grads(params, *batch)
    assert list(grads) == list(params)
    for name, grad in grads.items():
        assert (grad.shape, grad.dtype) == (params[name].shape, np.float32), name
    assert loss == transformer.loss(params, *batch)


def test_no_character_sees_what_follows_it(params, batch):
    """Scores of the first characters do not depend on the last."""
    text, _ = batch
    scores, _ = transformer.model(params, text)
    text[:, -1] = (text[:, -1] + 1) % SIZE.characters
    changed, _ = transformer.model(params, text)
    np.testing.assert_array_equal(changed[:, :-1], scores[:, :-1])
    assert (changed[:, -1] != scores[:, -1]).any()
