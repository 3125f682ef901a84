"""The reference itself, on values worked out by hand and against the seed's class."""

import numpy as np
import pytest

from arrays import normal, spread
from oracle import array_reference
from oracle.seed import AdaFactor as Seed

PLAIN = {"lr": 1.0, "beta2": 0.0, "eps": 0.0, "clip_threshold": None, "scale_parameter": False}


def step(param, grad, state=None, **hyper):
    state = state or array_reference.initial_state(np.shape(param))
    return array_reference.update(param, grad, state, **{**PLAIN, **hyper})


def test_one_element_moves_by_its_sign():
    param, state = step([[5.0]], [[-2.0]])
    assert param == [[6.0]]  # u = -2 / sqrt(4)
    assert (state.t, state.exp_row, state.exp_col, state.v) == (1, [4.0], [4.0], None)


def test_rank_one_squares_are_factored_exactly():
    # squares ((1, 4), (4, 16)): row and column means (2.5, 10), their mean 6.25
    param, state = step(np.zeros((2, 2)), [[1.0, -2.0], [2.0, -4.0]])
    np.testing.assert_array_equal(state.exp_row, [2.5, 10])
    np.testing.assert_array_equal(state.exp_col, [2.5, 10])
    np.testing.assert_allclose(param, [[-1, 1], [-1, 1]], rtol=1e-15)


def test_rows_and_columns_are_not_exchanged():
    # squares ((1, 4, 25),): one row mean 10; V is the squares themselves
    param, state = step(np.zeros((1, 3)), [[1.0, 2.0, -5.0]])
    np.testing.assert_array_equal(state.exp_row, [10])
    np.testing.assert_array_equal(state.exp_col, [1, 4, 25])
    np.testing.assert_allclose(param, [[-1, -1, 1]], rtol=1e-15)


def test_other_squares_are_approximated():
    # squares ((1, 1), (1, 49)): means (1, 25) twice, their mean 13; V = ((1, 25), (25, 625)) / 13
    param, _ = step(np.zeros((2, 2)), [[1.0, 1.0], [1.0, 7.0]])
    root = np.sqrt(13.0)
    np.testing.assert_allclose(param, [[-root, -root / 5], [-root / 5, -7 * root / 25]], rtol=1e-15)


def test_eps_stands_beside_the_square_and_under_the_fraction():
    param, state = step([0.0], [3.0], eps=7.0)
    assert state.v == [16.0]  # 3**2 + 7
    np.testing.assert_allclose(param, [-3 / (4 + 7)], rtol=1e-15)


def test_beta2_weighs_the_old_statistics():
    _, state = step([0.0], [2.0])
    param, state = step([0.0], [4.0], state, beta2=0.75)
    assert state.v == [0.75 * 4 + 0.25 * 16]
    assert state.t == 2
    np.testing.assert_allclose(param, [-4 / np.sqrt(7)], rtol=1e-15)


@pytest.mark.parametrize("clip, moved", [(0.5, 0.5), (1.0, 1.0), (2.0, 2.0), (None, 2.0)])
def test_clip_bounds_the_root_mean_square(clip, moved):
    # v = 1 (from before) everywhere and g = 2: u = 2, its RMS 2
    state = array_reference.State(v=np.ones(4))
    param, _ = step(np.zeros(4), np.full(4, 2.0), state, beta2=1.0, clip_threshold=clip)
    np.testing.assert_array_equal(param, np.full(4, -moved))


def test_scale_is_the_parameters_root_mean_square():
    # RMS(1, 7) = 5
    param, _ = step([1.0, 7.0], [1.0, -1.0], lr=0.1, scale_parameter=True)
    np.testing.assert_allclose(param, [0.5, 7.5], rtol=1e-15)


def test_nothing_given_is_changed():
    param, grad = np.ones((2, 3)), np.ones((2, 3))
    state = array_reference.initial_state((2, 3))
    step(param, grad, state)
    assert (param == 1).all() and (grad == 1).all()
    assert state.t == 0 and not state.exp_row.any() and not state.exp_col.any()


def test_no_elements_only_count_the_step():
    param, state = step(np.zeros((0, 3)), np.zeros((0, 3)))
    assert param.shape == (0, 3) and state.t == 1 and not state.exp_col.any()


@pytest.mark.parametrize("bad", [None, np.nan, np.inf], ids=str)
@pytest.mark.parametrize("eps", [0.0, 1e-30, 1e-3])
@pytest.mark.parametrize("shape", [(), (6,), (5, 1), (11, 8), (2, 3, 4)], ids=str)
def test_agrees_with_the_seed(shape, eps, bad):
    hyper = {"eps": eps, "lr": 0.1, "beta2": 0.9, "clip_threshold": 0.7}
    seed, state = Seed(shape, **hyper), array_reference.initial_state(shape)
    seeds_param = mine = normal(shape)
    seeds_param = mine.copy()
    for t in range(4):
        grad = (spread if shape else normal)(shape, seed=t + 1)
        if bad is not None and t == 2:
            grad.flat[-1] = bad
        mine, state = array_reference.update(mine, grad, state, **hyper)
        with np.errstate(all="ignore"):
            seeds_param = seed.update(seeds_param, grad)
    np.testing.assert_allclose(mine, seeds_param, rtol=1e-12, atol=1e-14)
    for name in ("exp_row", "exp_col") if len(shape) == 2 else ("v",):
        np.testing.assert_allclose(getattr(state, name), getattr(seed, name), rtol=1e-13)
