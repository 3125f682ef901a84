"""Steps that are left out are said, and too many in a row end a run."""

import copy
import pickle
import re
import warnings

import numpy as np
import pytest

from adafactor_native import Optimizer, SkippedStepWarning

GOOD = {"w": np.ones((2, 3)), "b": np.ones(3)}
BAD = {"w": np.ones((2, 3)), "b": np.array([1, np.nan, 1])}


def optimizer(**arguments):
    params = {name: np.ones(grad.shape) for name, grad in GOOD.items()}
    return Optimizer(params, nonfinite="skip", **arguments)


def said(opt, grads, steps):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            opt.step(grads)
    assert all(warning.category is SkippedStepWarning for warning in caught)
    return caught


@pytest.mark.parametrize("atomic", ["all", "tensor"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_first_skip_is_said_and_then_whenever_they_doubled(atomic, bad):
    opt = optimizer(atomic=atomic)
    assert not said(opt, GOOD, 3)
    caught = said(opt, {**GOOD, "b": np.full(3, bad)}, 20)
    assert [re.match("a step|[0-9]+", str(w.message)).group() for w in caught] == [
        *("a step", "2", "4", "8", "16")
    ]
    text = "a step was left out, as nonfinite is 'skip', this one for params['b']; t is "
    assert str(caught[0].message).startswith(text)
    assert caught[0].filename == __file__
    assert not said(opt, GOOD, 3)


def test_a_tensor_without_a_gradient_is_not_at_fault():
    (warning,) = said(optimizer(), {"w": None, "b": BAD["b"]}, 1)
    assert "for params['b']" in str(warning.message)


@pytest.mark.parametrize("most", [1, 3])
def test_too_many_in_a_row_raise_and_change_nothing(most):
    opt = optimizer(max_skipped=most)
    for _ in range(2):
        opt.step(GOOD)
        for _ in range(most):
            assert opt.step(BAD).skipped
    before = {key: x.tobytes() for key, x in opt.state_dict(params=True).items() if key != "header"}
    text = rf"{most + 1} steps in a row were left out, max_skipped is {most}, this one for params\['b'\]"
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="steps in a row were left out"):
            opt.step(BAD)
    opt.step(GOOD)
    for _ in range(most):
        opt.step(BAD)
    with pytest.raises(FloatingPointError, match=text):
        opt.step(BAD)
    assert opt.skipped == 2 * most + 2 + most + 1 and opt.t == 3
    after = {key: x.tobytes() for key, x in opt.state_dict(params=True).items() if key != "header"}
    assert before.keys() == after.keys() and before["t"] != after["t"]


def test_a_refused_step_leaves_params_and_state():
    opt = optimizer(max_skipped=1)
    opt.step(GOOD)
    opt.step(BAD)
    before = {key: x.tobytes() for key, x in opt.state_dict(params=True).items() if key != "header"}
    with pytest.raises(FloatingPointError):
        opt.step(BAD)
    after = {key: x.tobytes() for key, x in opt.state_dict(params=True).items() if key != "header"}
    assert before == after


def test_a_load_begins_to_count_again():
    opt = optimizer(max_skipped=1)
    opt.step(GOOD)
    state = opt.state_dict()
    for _ in range(3):
        opt.load_state_dict(state)
        assert opt.step(BAD).skipped
    with pytest.raises(FloatingPointError, match="2 steps in a row"):
        opt.step(BAD)


def test_it_can_be_set_and_copies_go_on_counting():
    opt = optimizer()
    opt.max_skipped = 2
    opt.step(BAD)
    opt.step(BAD)
    for again in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert again.max_skipped == 2
        with pytest.raises(FloatingPointError, match="3 steps in a row"):
            again.step(BAD)
    opt.max_skipped = None
    opt.step(BAD)


@pytest.mark.parametrize(
    "arguments, error, text",
    [
        ({"max_skipped": 0}, ValueError, "max_skipped is 0, must be an int >= 1 or None"),
        ({"max_skipped": -1}, ValueError, "max_skipped is -1, must be an int >= 0"),
        ({"max_skipped": 1.5}, TypeError, "max_skipped is a float, must be an int >= 0"),
        (
            {"max_skipped": 2, "nonfinite": "raise"},
            ValueError,
            "max_skipped is 2, must be None with",
        ),
    ],
)
def test_what_is_refused(arguments, error, text):
    with pytest.raises(error, match="^" + text):
        Optimizer([np.ones(3)], **{"nonfinite": "skip", **arguments})
