"""Tensors that are stepped one by one take one step of the model, with the bits of a plain one."""

import re
import weakref
from functools import partial

import numpy as np
import pytest

from adafactor_native import Optimizer, SkippedStepWarning
from arrays import normal
from arrivals import (
    KINDS,
    RUNS,
    SHAPES,
    all_of,
    assert_same,
    gradients,
    one_by_one,
    optimizer,
    uses_of_state,
)
from buffers import LAYOUTS, Buffer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", RUNS)
def test_the_bits_are_those_of_a_plain_step(run, kind):
    opt, twin = optimizer(run, kind), optimizer(run, kind)
    for t in range(3):
        grads = gradients(t, KINDS[kind][1])
        one_by_one(opt.step_tensor, grads)
        assert opt.t == t
        assert opt.step().as_dict() == twin.step(grads).as_dict()
        assert_same(opt, twin)


@pytest.mark.parametrize("run", ["paper, lr by t", "optax", "keras", "t5x", "big_vision"])
def test_steps_of_one_tensor_each_would_be_others(run):
    """What step_tensor is for: through None, each would count as a step of the model."""
    opt, twin = optimizer(run), optimizer(run)
    for t in (0, 2):
        grads = gradients(t)
        for name, grad in grads.items():
            opt.step(dict.fromkeys(grads) | {name: grad})
        twin.step(grads)
    assert opt.t == 2 * len(SHAPES) and twin.t == 2
    assert opt.params["panels"].tobytes() != twin.params["panels"].tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_in_any_layout(layout):
    opt, twin = optimizer("huggingface"), optimizer("huggingface")
    grads = {name: Buffer(grad, layout) for name, grad in gradients(0).items()}
    one_by_one(opt.step_tensor, {name: buffer.array for name, buffer in grads.items()})
    opt.step()
    twin.step({name: buffer.array for name, buffer in grads.items()})
    assert_same(opt, twin)
    for buffer in grads.values():
        buffer.assert_guards_intact()


@pytest.mark.parametrize("atomic", ["all", "tensor"])
@pytest.mark.parametrize("threads", [1, 2])
def test_step_takes_the_rest(threads, atomic):
    opt, twin = (optimizer("optax", num_threads=threads, atomic=atomic) for _ in range(2))
    for t in range(3):
        grads = gradients(t)
        opt.measure("panels", grads["panels"])
        for name in ("kernel", "bias"):
            if grads[name] is not None:
                opt.step_tensor(name, grads[name])
        rest = {name: grad for name, grad in grads.items() if name not in ("kernel", "bias")}
        if t == 1:
            rest |= {"kernel": None, "bias": None}
        del rest["panels"]
        if t == 2:
            assert opt.step(rest | {"bias": None}).as_dict() == twin.step(grads).as_dict()
        else:
            assert opt.step(rest).as_dict() == twin.step(grads).as_dict()
        assert_same(opt, twin)


def test_with_a_scaled_loss():
    opt, twin = optimizer("torch"), optimizer("torch")
    grads = gradients(0)
    one_by_one(opt.step_tensor, grads, grad_scale=8.0)
    assert opt.step().as_dict() == twin.step(grads, grad_scale=8.0).as_dict()
    assert_same(opt, twin)


def test_the_report_is_that_of_the_step_so_far():
    opt = optimizer()
    grads = gradients(0)
    first = opt.step_tensor("heads", grads["heads"])
    assert (opt.t, first.t, first.skipped) == (0, 1, False)
    assert np.isnan(first.grad_norm) and first["heads"]["stepped"]
    assert np.isnan(first["tiles"]["rms_grad"]) and not first["tiles"]["stepped"]
    assert opt.step_tensor("tiles", grads["tiles"]) is first
    assert first["tiles"]["rms_grad"] == pytest.approx(1, rel=0.1)
    last = opt.step()
    assert last is first
    both = np.concatenate([grads[name].ravel() for name in ("heads", "tiles")])
    assert last.grad_norm == pytest.approx(np.linalg.norm(both.astype(np.float64)))
    assert opt.counts.tolist() == [int(name in ("heads", "tiles")) for name in opt.names]
    assert opt.step_tensor("tiles", grads["tiles"]) is not first


def test_a_gradient_is_freed_at_once():
    opt = optimizer()
    for name in ("tiles", "heads", "kernel", "vector", "bias"):
        grad = gradients(0)[name]
        held = weakref.ref(grad)
        opt.step_tensor(name, grad)
        del grad
        assert held() is None


def test_schedules_are_called_once_in_a_step():
    calls = []
    params = {name: np.ones((5, 4)) for name in "abc"}
    opt = Optimizer(params, relative_step=False, lr=lambda t: calls.append(t) or 0.1)
    for t in (1, 2):
        one_by_one(opt.step_tensor, {name: normal((5, 4)) for name in params})
        opt.step()
        assert calls == list(range(1, t + 1))


def test_what_is_set_in_the_middle_holds_from_the_next_step():
    opt, twin = optimizer(), optimizer()
    grads = gradients(0)
    opt.step_tensor("bias", grads["bias"])
    opt.param_groups[0]["clip_threshold"] = 0.1
    opt.max_grad_norm = 1e-3
    one_by_one(opt.step_tensor, {name: grad for name, grad in grads.items() if name != "bias"})
    opt.step()
    twin.step(grads)
    assert_same(opt, twin)
    twin.param_groups[0]["clip_threshold"] = 0.1
    twin.max_grad_norm = 1e-3
    with pytest.raises(
        ValueError, match=r"^max_grad_norm is 0\.001, must be None for opt\.step_tensor"
    ):
        opt.step_tensor("bias", grads["bias"])
    opt.step(gradients(2))
    twin.step(gradients(2))
    assert_same(opt, twin)


# What is not finite


def test_a_fault_says_what_was_stepped_and_the_step_goes_on():
    opt, twin = optimizer("optax"), optimizer("optax")
    good = gradients(0)
    bad = good["tiles"].copy()
    bad[3, 5] = np.nan
    text = "grads['tiles'][3, 5] is nan, must be finite; it was not changed"
    before = all_of(opt)
    with pytest.raises(FloatingPointError, match="^" + re.escape(text) + "$"):
        opt.step_tensor("tiles", bad)
    assert all_of(opt) == before and not opt._tensors.is_open
    named = ["panels", "vector", "kernel", "heads"]
    shown = " and 1 more were"
    for name in named:
        opt.step_tensor(name, good[name])
    middle = all_of(opt)
    with pytest.raises(FloatingPointError) as caught:
        opt.step_tensor("tiles", bad)
    assert str(caught.value) == (
        f"{text}, but params['vector'], params['panels'], params['kernel']{shown} in this step before"
    )
    assert all_of(opt) == middle and opt.t == 0
    opt.step_tensor("tiles", good["tiles"])  # another gradient of it
    opt.step()
    taken = {name: good[name] if name in [*named, "tiles"] else None for name in good}
    twin.step(taken)
    assert_same(opt, twin)


@pytest.mark.parametrize("atomic", ["all", "tensor"])
def test_a_fault_of_the_rest_leaves_the_step_open(atomic):
    opt, twin = optimizer(atomic=atomic), optimizer(atomic=atomic)
    grads = gradients(0)
    opt.step_tensor("bias", grads["bias"])
    bad = {name: None for name in grads} | {"tiles": np.full(SHAPES["tiles"], np.inf, np.float32)}
    before = all_of(opt)
    with pytest.raises(
        FloatingPointError, match=r"it was not changed, but params\['bias'\] was in"
    ):
        opt.step(bad)
    assert all_of(opt) == before and opt._tensors.is_open
    rest = {name: grad for name, grad in grads.items() if name != "bias"}
    opt.step(rest)
    twin.step(grads)
    assert_same(opt, twin)


def test_what_the_rest_has_stepped_before_its_fault_counts():
    """With atomic="tensor"; the step stays open until a call that raises nothing."""
    opt = optimizer(atomic="tensor")
    grads = gradients(0)
    opt.step_tensor("bias", grads["bias"])
    grads["heads"][...] = np.inf
    rest = {name: grads[name] for name in opt.names if name != "bias"}
    with pytest.raises(FloatingPointError, match=r"those before it were$"):
        opt.step(rest)
    assert opt.t == 0 and opt._tensors.is_open
    with pytest.raises(ValueError, match=r"^grads\['tiles'\] was taken in this step already"):
        opt.step_tensor("tiles", grads["tiles"])
    report = opt.step()
    assert opt.t == 1 and report["tiles"]["stepped"] and not report["heads"]["stepped"]


def test_left_out_where_steps_are_skipped():
    opt, twin = (optimizer(nonfinite="skip", atomic="tensor", max_skipped=1) for _ in range(2))
    grads = gradients(0)
    grads["tiles"][3, 5] = np.nan
    one_by_one(opt.step_tensor, grads)
    with pytest.raises(ValueError, match=r"^grads\['tiles'\] was taken in this step already"):
        opt.step_tensor("tiles", gradients(0)["tiles"])
    with pytest.warns(SkippedStepWarning, match=r"left out for params\['tiles'\].*; t is 1"):
        one = opt.step()
    with pytest.warns(SkippedStepWarning):
        other = twin.step(grads)
    assert one.as_dict() == other.as_dict() and one.skipped
    assert_same(opt, twin)
    assert opt.skipped == 1 and opt.t == 1
    one_by_one(opt.step_tensor, grads)
    with pytest.raises(FloatingPointError, match=r"^2 steps in a row were left out"):
        opt.step()
    assert (opt.t, opt.skipped) == (2, 2)


def test_a_step_in_which_nothing_was_finite_does_not_count():
    opt = optimizer(nonfinite="skip")
    opt.step_tensor("bias", np.full(50, np.inf, np.float32))
    with pytest.warns(SkippedStepWarning):
        opt.step()
    assert (opt.t, opt.skipped) == (0, 1)


def test_propagated_as_by_a_plain_step():
    opt, twin = optimizer(nonfinite="propagate"), optimizer(nonfinite="propagate")
    grads = gradients(0)
    grads["tiles"][3, 5] = np.nan
    one_by_one(opt.step_tensor, grads)
    opt.step()
    twin.step(grads)
    assert_same(opt, twin)


# What is refused


def test_what_is_refused():
    opt = optimizer()
    panels = gradients(0)["panels"]
    before = all_of(opt)
    refused = [
        (("panel", panels), ValueError, "name is 'panel', did you mean 'panels'?"),
        ((0, panels), TypeError, "name is a int, must be a str of opt.names"),
        (("panels", None), TypeError, "grads['panels'] is a NoneType, must be a numpy.ndarray"),
        (("panels", panels.T), ValueError, "grads['panels'] has shape (70, 300), must be"),
        (("panels", opt.params["panels"]), ValueError, "grads['panels'] overlaps params['panels']"),
        (("panels", panels, 0), ValueError, "grad_scale is 0.0, must be a finite number > 0"),
    ]
    for arguments, error, text in refused:
        with pytest.raises(error, match="^" + re.escape(text)):
            opt.step_tensor(*arguments)
    assert all_of(opt) == before and not opt._tensors.is_open
    opt.step_tensor("panels", panels)
    again = r"^grads\['panels'\] was taken in this step already, .*: end it by opt\.step\(\)$"
    before = all_of(opt)
    uses = (
        lambda: opt.step_tensor("panels", panels),
        lambda: opt.measure("panels", panels),
        lambda: opt.step(gradients(0)),
    )
    for use in uses:
        with pytest.raises(ValueError, match=again):
            use()
    with pytest.raises(ValueError, match=r"^grads\['panels'\] must be None, as the next step has"):
        opt.accumulate(gradients(0))
    assert all_of(opt) == before


def test_accumulated_gradients_go_with_it():
    opt, twin = optimizer(), optimizer()
    grads = gradients(0)
    rest = {name: None if name == "panels" else grad for name, grad in grads.items()}
    opt.accumulate(rest)
    with pytest.raises(ValueError, match=r"^grads\['tiles'\] has been accumulated, which waits"):
        opt.step_tensor("tiles", grads["tiles"])
    opt.step_tensor("panels", grads["panels"])
    opt.accumulate(rest)
    assert opt.step().as_dict() == twin.step(grads).as_dict()
    assert_same(opt, twin)


def test_no_state_in_the_middle_of_a_step(tmp_path):
    opt = optimizer()
    state = opt.state_dict()
    opt.step_tensor("panels", gradients(0)["panels"])
    before = all_of(opt)
    add = partial(opt.add_param_group, {"params": {"new": np.ones(3)}})
    for use in (*uses_of_state(opt, state, tmp_path / "state.npz"), add):
        with pytest.raises(
            ValueError, match=r"^a step that opt\.step_tensor has begun is open, .*: end"
        ):
            use()
    assert all_of(opt) == before
    opt.step()
    assert opt.state_dict().keys() == state.keys()
    opt.load_state_dict(state)
    assert opt.t == 0
