"""Accumulated gradients are the gradient of one large batch, whatever dtypes they come in."""

import copy
import functools
import re

import ml_dtypes
import numpy as np
import pytest

from adafactor_native import Optimizer
from arrays import normal
from optimizers import digest_of_model
from two_groups import RUNS, gradients, new_params, optimizer

BF16 = np.dtype(ml_dtypes.bfloat16)


def test_a_thousand_gradients_of_bfloat16():
    opt = Optimizer({"w": np.ones((4, 3), BF16)})
    for _ in range(1024):
        opt.accumulate({"w": np.full((4, 3), 0.01, BF16)})
    value = float(np.asarray(0.01, BF16))
    mean = copy.deepcopy(opt)
    report = opt.step(reduce="sum")
    assert report["w"]["rms_grad"] == pytest.approx(1024 * value, rel=1e-5)
    assert 10.24 < report["w"]["rms_grad"] < 10.26
    assert mean.step()["w"]["rms_grad"] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("reduce", [None, "mean", "sum"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=str)
@pytest.mark.parametrize("run", RUNS)
def test_a_step_of_sums_is_that_of_the_sum(run, dtype, reduce):
    opt, twin = optimizer(run, new_params(dtype)), optimizer(run, new_params(dtype))
    for t in (0, 4):
        parts = [gradients(t), gradients(2), gradients(t + 1)]
        for part in parts:
            opt.accumulate(part)
        summed = {
            name: functools.reduce(
                np.add, [part[name].astype(dtype) for part in parts if part[name] is not None]
            )
            for name in parts[0]
        }
        one = opt.step(reduce=reduce)
        other = twin.step(summed, grad_scale=1.0 if reduce == "sum" else 3.0)
        assert one.as_dict() == other.as_dict()
        assert digest_of_model(opt) == digest_of_model(twin)


@pytest.mark.parametrize("param", [np.float16, BF16, np.float32, np.float64], ids=str)
@pytest.mark.parametrize("grad", [np.float16, BF16, np.float32, np.float64], ids=str)
def test_sums_are_of_float32_or_of_float64(grad, param):
    opt = Optimizer({"w": np.ones((4, 3), param), "b": np.ones(3, param)})
    grads = [normal((4, 3), grad, seed=i)[::-1] for i in range(3)]
    for part in grads:
        opt.accumulate({"w": part, "b": None})
    wide = np.float64 if np.float64 in (np.dtype(param), np.dtype(grad)) else np.float32
    expected = sum((part.astype(wide) for part in grads[1:]), grads[0].astype(wide))
    own = opt._accumulated.sums["w"]
    assert own.dtype == wide and own.tobytes() == expected.tobytes()
    assert opt.memory.by_tensor["w"]["sum"] == own.nbytes and "sum" not in opt.memory.by_tensor["b"]
    assert opt.step().stepped.tolist() == [True, False]
    assert "sum" not in opt.memory.by_kind


def test_a_sum_becomes_wider_where_a_gradient_is():
    opt = Optimizer({"w": np.ones(3, np.float32)})
    opt.accumulate({"w": np.ones(3, np.float32)})
    opt.accumulate({"w": np.full(3, 1e-12)})
    opt.accumulate({"w": np.ones(3, np.float16)})
    assert opt._accumulated.sums["w"].tolist() == [1.0 + 1e-12 + 1.0] * 3


def test_a_sum_of_no_axes_becomes_wider_too():
    opt = Optimizer({"w": np.ones(3, np.float32), "b": np.ones((), np.float32)})
    for dtype in (np.float32, np.float64, np.float16):
        opt.accumulate({"w": np.ones(3, dtype), "b": np.ones((), dtype)})
    sums = opt._accumulated.sums
    assert all(type(own) is np.ndarray and own.dtype == np.float64 for own in sums.values())
    assert sums["w"].tolist() == [3.0] * 3 and sums["b"].tolist() == 3.0


BAD = [
    ({"w": [1.0]}, ValueError, "grads has no 'b', must have every name"),
    ({"w": np.ones(3), "b": [1.0] * 2}, TypeError, "grads['b'] is a list, must be a numpy.ndarray"),
    ({"w": np.ones(3), "b": np.ma.ones(2)}, TypeError, "grads['b'] is a MaskedArray, must be"),
    ({"w": np.ones(3), "b": np.ones(2, int)}, TypeError, "grads['b'] has dtype int64, must be"),
    ({"w": np.ones(3), "b": np.ones(2, ">f4")}, TypeError, "grads['b'] has dtype >f4, must be"),
    ({"w": np.ones(3), "b": np.ones(3)}, ValueError, "grads['b'] has shape (3,), must be (2,)"),
    (3, TypeError, "grads is a int, must be a mapping"),
]


@pytest.mark.parametrize("grads, error, text", BAD)
def test_what_is_refused_changes_no_sum(grads, error, text):
    opt = Optimizer({"w": np.ones(3), "b": np.ones(2)})
    opt.accumulate([np.ones(3), np.ones(2)])
    with pytest.raises(error, match="^" + re.escape(text)):
        opt.accumulate(grads)
    assert opt._accumulated.n == 1 and opt._accumulated.sums["w"].tolist() == [1, 1, 1]


def test_sums_are_neither_lost_nor_mixed(tmp_path):
    opt = Optimizer({"w": np.ones(3)})
    state = opt.state_dict()
    grads = {"w": np.ones(3)}
    opt.accumulate(grads)
    for use in (
        opt.state_dict,
        lambda: opt.save(tmp_path / "state.npz"),
        lambda: opt.load_state_dict(state),
        lambda: opt.step(grads),
    ):
        with pytest.raises(
            ValueError, match=r"^1 accumulated gradients wait for a step, .*None\)$"
        ):
            use()
    with pytest.raises(ValueError, match=r"^reduce is 'max', must be 'mean' or 'sum'$"):
        opt.step(reduce="max")
    assert opt.t == 0 and opt._accumulated.n == 1
    opt.accumulate(None)
    with pytest.raises(ValueError, match=r"^reduce is 'sum', must be None without accumulated"):
        opt.step(grads, reduce="sum")
    with pytest.raises(TypeError, match=r"^grads is a NoneType, must be a mapping"):
        opt.step()
    opt.step(grads)
    assert sorted(opt.state_dict()) == sorted(state) and opt.t == 1


def test_infinities_that_meet_in_a_wider_sum_warn_nobody():
    opt = Optimizer({"w": np.ones(3, np.float32)})
    opt.accumulate({"w": np.full(3, np.inf, np.float32)})
    opt.accumulate({"w": np.full(3, -np.inf)})
    with pytest.raises(FloatingPointError, match=r"grads\['w'\]\[0\] is nan"):
        opt.step()


def test_what_is_not_finite_is_the_steps_to_refuse():
    opt = Optimizer({"w": np.ones(3, np.float32)})
    for _ in range(2):
        opt.accumulate({"w": np.full(3, 3e38, np.float32)})
    with pytest.raises(FloatingPointError, match=r"grads\['w'\]\[0\] is inf"):
        opt.step()
    assert opt.t == 0 and opt._accumulated.n == 2
    opt.nonfinite = "skip"
    assert opt.step().skipped and opt._accumulated.n == 0
