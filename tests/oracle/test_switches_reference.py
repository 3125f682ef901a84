"""The reference of whole models itself: on values worked out by hand, and beside the seed's."""

import numpy as np
import pytest

from arrays import normal, spread
from oracle import array_reference, switches_reference
from oracle.switches_reference import Run, State, axes_to_factor

PLAIN = {"lr": 1.0, "beta2": 0.0, "eps": 0.0, "clip_threshold": None, "scale_parameter": False}


def step(param, grad, state=None, **switches):
    return switches_reference.step(param, grad, state or State(), **{**PLAIN, **switches})


@pytest.mark.parametrize("clip", [0.7, None])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("eps", [1e-30, 1e-3])
@pytest.mark.parametrize("shape", [(), (6,), (5, 1), (11, 8), (2, 3, 4), (0, 3)], ids=str)
def test_defaults_are_the_seed(shape, eps, scale, clip):
    hyper = {"lr": 0.1, "beta2": 0.9, "eps": eps, "scale_parameter": scale, "clip_threshold": clip}
    theirs = normal(shape)
    state = array_reference.initial_state(shape)
    run = Run({"x": theirs}, **hyper)
    for t in range(4):
        grad = (spread if shape else normal)(shape, seed=t + 1)
        theirs, state = array_reference.update(theirs, grad, state, **hyper)
        run.step({"x": grad})
        np.testing.assert_allclose(run.params["x"], theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "shape, rule, least, axes",
    [
        ((7,), "last_two", 0, None),
        ((2, 3), "matrix", 0, (0, 1)),
        ((2, 3, 4), "matrix", 0, None),
        ((2, 3), "none", 0, None),
        ((2, 3, 4), "last_two", 0, (1, 2)),
        ((4, 3, 2), "two_largest", 0, (1, 0)),
        ((4, 2, 5, 3), "two_largest", 0, (0, 2)),
        ((3, 3, 2, 3), "two_largest", 0, (1, 3)),  # of equals, the last ones
        ((4, 3, 2), "two_largest", 3, (1, 0)),
        ((4, 3, 2), "two_largest", 4, None),
        ((4, 3, 2), (0, -1), 0, (0, 2)),
        ((4, 3, 2), (0, -1), 3, None),
        ((4,), (0, -1), 0, None),
    ],
    ids=str,
)
def test_axes(shape, rule, least, axes):
    assert axes_to_factor(shape, rule, least) == axes


def test_batches_are_matrices_of_their_own():
    # squares ((1, 4), (4, 16)) and 100 times as much: both of rank one, so that u is the sign
    grad = np.array([[[1.0, -2.0], [2.0, -4.0]], [[10.0, -20.0], [20.0, -40.0]]])
    signs = np.array([[[-1.0, 1.0], [-1.0, 1.0]]] * 2)
    for axes in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
        factored_axes = axes.index(1), axes.index(2)
        after, state = step(np.zeros((2, 2, 2)), grad.transpose(axes), factored_axes=factored_axes)
        np.testing.assert_allclose(after, signs.transpose(axes), rtol=1e-15)
        np.testing.assert_allclose(np.sort(state.exp_row, None), [2.5, 10, 250, 1000])


def test_where_eps_acts():
    # one element: V is its own square, 4 or what eps makes of it
    for mode, moved in {
        "both": 2 / (np.sqrt(4 + 5) + 5),
        "grad_squared": 2 / np.sqrt(4 + 5),
        "root": 2 / np.sqrt(4 + 5),
        "clamp": 2 / 5,
    }.items():
        after, _ = step([0.0], [2.0], eps=5.0, eps_mode=mode)
        np.testing.assert_allclose(after, [-moved], rtol=1e-15, err_msg=mode)
    for mode, moved in {
        "both": 2 / (np.sqrt(9 * 9 / 9) + 5),
        "grad_squared": 2 / np.sqrt(9 * 9 / 9),
        "root": 2 / np.sqrt(9 * 9 / 4),
        "clamp": 2 / 5,  # V = 4 * 4 / max(4, 5) = 3.2, its root below 5
    }.items():
        after, _ = step([[0.0]], [[2.0]], eps=5.0, eps_mode=mode)
        np.testing.assert_allclose(after, [[-moved]], rtol=1e-15, err_msg=mode)
    after, _ = step([[0.0]], [[0.5]], eps=0.36, eps_mode="clamp")
    np.testing.assert_allclose(after, [[-0.5 / np.sqrt(0.25 * 0.25 / 0.36)]], rtol=1e-15)


def test_beta2_rises_to_its_cap_after_the_offset():
    # v of the first gradient, 1, is 1 - beta2
    def beta2(t, **switches):
        _, state = step([0.0], [1.0], t=t, decay_rate=-0.5, **switches)
        return 1 - state.v[0]

    assert beta2(1, beta2=1.0) == 0
    assert beta2(4, beta2=1.0) == 0.5
    assert beta2(4, beta2=0.25) == 0.25
    assert beta2(7, beta2=1.0, decay_offset=3) == 0.5
    assert beta2(2, beta2=1.0, decay_offset=3) == 0


def test_step_sizes():
    # u = 1 throughout
    def moved(t=4, **switches):
        after, _ = step([3.0], [2.0], t=t, **switches)
        return 3 - after[0]

    assert moved(lr=0.2, relative_step=True) == pytest.approx(0.2)
    assert moved(lr=0.8, relative_step=True) == pytest.approx(0.5)
    assert moved(lr=0.2, relative_step=True, warmup_init=True) == pytest.approx(4e-6)
    assert moved(lr=0.2, scale_parameter=True) == pytest.approx(0.6)
    assert moved(lr=0.2, scale_parameter=True, eps_scale=5.0) == pytest.approx(1.0)
    assert moved(lr=0.2, schedule=0.5) == pytest.approx(0.1)
    assert moved(lr=0.2, maximize=True) == pytest.approx(-0.2)
    # beta2 = 0.5 and no statistics before: u = sqrt(2)
    correction = np.sqrt(1 - 0.5**4) / (1 - 0.5**4)
    assert moved(lr=0.2, beta2=0.5, bias_correction=True) == pytest.approx(
        0.2 * correction * np.sqrt(2)
    )


def test_weight_decay():
    # u = 1, RMS(param) = 3
    def after(**switches):
        param, _ = step([3.0], [2.0], lr=0.2, weight_decay=0.5, **switches)
        return param[0]

    assert after() == pytest.approx(0.9 * 3 - 0.2)
    assert after(weight_decay_mode="alone") == pytest.approx(0.5 * 3 - 0.2)
    assert after(weight_decay_mode="alone", schedule=0.1) == pytest.approx(0.5 * 3 - 0.02)
    assert after(weight_decay_mode="schedule", schedule=0.1) == pytest.approx(0.95 * 3 - 0.02)
    assert after(weight_decay_mode="step", scale_parameter=True) == pytest.approx(0.7 * 3 - 0.6)
    assert after(weight_decay_mode="alone", weight_decay_lr_exponent=2) == pytest.approx(
        (1 - 0.5 * 0.04) * 3 - 0.2
    )
    assert after(scale_parameter=True, scale_after_decay=True) == pytest.approx(0.9 * (3 - 0.6))


def test_momentum_of_the_step_or_of_u():
    # u = 1, of which 1, then 1.5 of the mean at beta1 = 0.5; lr falls from 1 to 0.1
    for momentum_of, last in {"step": 0.5 * 0.5 + 0.5 * 0.1, "u": 0.1 * 0.75}.items():
        param, state = step([0.0], [2.0], beta1=0.5, momentum_of=momentum_of)
        assert param == [-0.5]
        param, state = step([0.0], [2.0], state, beta1=0.5, momentum_of=momentum_of, lr=0.1)
        np.testing.assert_allclose(param, [-last], rtol=1e-15)


def test_means_are_rounded_after_they_are_used():
    # v is (1 + 2**-26) / 2, of which float32 has 1/2; u is 2**-13 over the root of the former
    old, grad = State(v=np.ones(1)), [2.0**-13]
    for dtype, v in {np.float32: 0.5, np.float64: 0.5 + 2.0**-27}.items():
        param, state = step([0.0], grad, old, beta2=0.5, state_dtype=dtype)
        assert state.v == [v]
        np.testing.assert_allclose(param, [-(2.0**-13) / np.sqrt(0.5 + 2.0**-27)], rtol=1e-15)


def test_rms_over_each_matrix_or_all():
    # matrices of RMS 1 and 3; of both: sqrt(5)
    param = np.array([[[1.0]], [[3.0]]])
    grad = np.ones((2, 1, 1))
    for scope, rms in {"matrix": param, "tensor": np.full((2, 1, 1), np.sqrt(5))}.items():
        after, _ = step(
            param, grad, lr=0.1, scale_parameter=True, factored_axes="last_two", rms_scope=scope
        )
        np.testing.assert_allclose(after, param - 0.1 * rms, rtol=1e-15)
    # without statistics of its own a step u is g; clipped to RMS 1 each, or together
    state = State(exp_row=np.ones((2, 1, 1)), exp_col=np.ones((2, 1, 1)))
    for scope, moved in {"matrix": np.ones((2, 1, 1)), "tensor": param / np.sqrt(5)}.items():
        after, _ = step(
            param,
            param,
            state,
            beta2=1.0,
            clip_threshold=1.0,
            factored_axes="last_two",
            rms_scope=scope,
        )
        np.testing.assert_allclose(after, param - moved, rtol=1e-15)


def test_a_model_counts_masks_and_schedules():
    groups = [
        {"params": {"a": np.ones(1), "b": np.ones(1)}, "lr": lambda t: 10.0**-t},
        {"params": {"c": np.ones(1, np.float32)}, "eps": None, "eps_mode": "clamp"},
    ]
    run = Run(
        groups,
        **{**PLAIN, "eps": 1e-30},
        weight_decay=0.5,
        weight_decay_mode="alone",
        weight_decay_mask={"a": True, "b": False, "c": False},
    )
    run.step({"a": np.ones(1), "b": None, "c": np.full(1, 1e-10)})
    np.testing.assert_allclose(run.params["a"], 0.5 - 0.1)
    np.testing.assert_allclose(run.params["b"], 1)
    np.testing.assert_allclose(run.params["c"], 1 - 1e-10 / np.finfo(np.float32).eps)
    run.step({"a": None, "b": np.ones(1), "c": None})
    np.testing.assert_allclose(run.params["b"], 1 - 0.01)
    assert (run.t, run.counts) == (2, {"a": 1, "b": 1, "c": 1})


def test_t_is_the_tensors_or_the_models():
    for t_scope, moved in {"tensor": 1, "model": 1 / np.sqrt(2)}.items():
        run = Run(
            {"a": np.zeros(1), "b": np.zeros(1)}, **PLAIN, relative_step=True, t_scope=t_scope
        )
        run.step({"a": np.ones(1), "b": None})
        run.step({"a": np.ones(1), "b": np.ones(1)})
        np.testing.assert_allclose(run.params["b"], -moved)


def test_gradients_are_unscaled_and_clipped_together():
    state = {"beta2": 1.0, "clip_threshold": None, "max_grad_norm": 1.0}  # v stays as it is: 1
    run = Run({"a": np.zeros(1), "b": np.zeros(1), "c": np.zeros(1)}, **{**PLAIN, **state})
    for name in run.states:
        run.states[name] = State(v=np.ones(1))
    run.step({"a": np.full(1, 6.0), "b": np.full(1, -8.0), "c": None}, grad_scale=2.0)
    np.testing.assert_allclose([run.params["a"], run.params["b"]], [[-0.6], [0.8]], rtol=1e-6)
    run.step({"a": np.full(1, 0.6), "b": None, "c": None}, grad_scale=2.0)  # short enough
    np.testing.assert_allclose(run.params["a"], [-0.9], rtol=1e-6)


def test_nothing_given_is_changed():
    param, grad = np.ones((2, 3)), np.ones((2, 3))
    run = Run({"x": param}, beta1=0.9)
    run.step({"x": grad})
    assert (param == 1).all() and (grad == 1).all()
    assert not (run.params["x"] == 1).any()
