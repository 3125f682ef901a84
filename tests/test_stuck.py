"""A tensor of zeros whose step size is RMS(param) cannot move: the report says so."""

import numpy as np
import pytest

from adafactor_native import Optimizer

GRADS = {"zeros": np.ones((2, 3)), "ones": np.ones((2, 3))}


def report(convention="numpy", zeros=None, **switches):
    params = {"zeros": np.zeros((2, 3)) if zeros is None else zeros, "ones": np.ones((2, 3))}
    opt = Optimizer(params, convention, **switches)
    return opt.step(GRADS), params


def test_zeros_without_a_floor_are_stuck_though_they_stepped():
    told, params = report()
    assert not params["zeros"].any()
    assert told["zeros"]["stuck"] is True
    assert told["zeros"]["stepped"] is True
    assert told["ones"]["stuck"] is False
    assert told.stuck.tolist() == [True, False]
    assert "stuck=1" in repr(told)
    assert str(told).splitlines()[-1].endswith(": zeros")


@pytest.mark.parametrize(
    "switches",
    [
        {"convention": "paper"},
        {"convention": "torch"},
        {"scale_parameter": False},
        {"eps_scale": 1e-6},
        {"zeros": np.full((2, 3), 1e-150)},
    ],
    ids=str,
)
def test_what_moves_is_not_stuck(switches):
    told, params = report(**switches)
    assert params["zeros"].any()
    assert not told.stuck.any()
    assert "stuck at zero" not in str(told)


def test_a_learning_rate_of_zero_is_another_reason():
    told, _ = report(lr=0.0)
    assert not told.stuck.any()


def test_a_tensor_without_a_gradient_or_without_elements_is_not_stuck():
    opt = Optimizer({"zeros": np.zeros(3), "empty": np.zeros((0, 3))}, "numpy")
    assert not opt.step({"zeros": None, "empty": np.zeros((0, 3))}).stuck.any()


def test_matrices_of_their_own_are_stuck_together_only():
    param = np.zeros((2, 3, 4))
    switches = {"factored_axes": "last_two", "rms_scope": "matrix"}
    opt = Optimizer({"x": param}, "numpy", **switches)
    assert opt.step({"x": np.ones((2, 3, 4))}).stuck.all()
    param[1] = 1
    assert not opt.step({"x": np.ones((2, 3, 4))}).stuck.any()
