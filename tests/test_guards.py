"""Steps that are left out are said, and too many in a row end a run."""

import copy
import linecache
import pickle
import re
import warnings

import numpy as np
import pytest

from adafactor_native import (
    AdaFactor,
    AdafactorWarning,
    Optimizer,
    SkippedStepWarning,
    StuckTensorWarning,
)
from oracle.halves_reference import bfloat16

GOOD = {"w": np.ones((2, 3)), "b": np.ones(3)}
BAD = {"w": np.ones((2, 3)), "b": np.array([1, np.nan, 1])}


def optimizer(**arguments):
    params = {name: np.ones(grad.shape) for name, grad in GOOD.items()}
    return Optimizer(params, nonfinite="skip", **arguments)


def assert_said_at(warning, line):
    """Assert that a warning points at the user's own line."""
    assert warning.filename == __file__
    assert linecache.getline(__file__, warning.lineno).strip() == line


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
    text = (
        "a step was left out for params['b'], which would not be finite: nonfinite is 'skip'; t is"
    )
    assert str(caught[0].message).startswith(text)
    assert str(caught[1].message).startswith(
        "2 steps were left out, this one for params['b'], which"
    )
    assert_said_at(caught[0], "opt.step(grads)")
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


@pytest.mark.parametrize("shape", [(4, 3), (5,), (2, 3, 4), (), (300, 200)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, bfloat16])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_array_says_it_too(bad, dtype, shape):
    opt, param = AdaFactor(shape, nonfinite="skip"), np.ones(shape, dtype)
    good, wrong = np.ones(shape, dtype), np.ones(shape, dtype)
    wrong[(-1,) * wrong.ndim] = bad
    before = param.tobytes()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5):
            opt.update(param, wrong)
    assert param.tobytes() == before and (opt.t, opt.skipped) == (0, 5)
    assert [str(w.message) for w in caught] == [
        "a step was left out for grad, which is not finite: nonfinite is 'skip'; t is 0",
        "2 steps were left out, this one for grad, which is not finite: nonfinite is 'skip'; t is 0",
        "4 steps were left out, this one for grad, which is not finite: nonfinite is 'skip'; t is 0",
    ]
    assert {w.category for w in caught} == {SkippedStepWarning}
    assert_said_at(caught[0], "opt.update(param, wrong)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.update(param, good)
        for again in (copy.copy(opt), pickle.loads(pickle.dumps(opt))):
            again.update(param.copy(), good)
    assert opt.t == 1


def test_one_array_says_what_its_state_did():
    opt, param = AdaFactor((3,), nonfinite="skip", eps=0.0), np.ones(3)
    with pytest.warns(SkippedStepWarning, match="^a step was left out because it would not be fin"):
        opt.update(param, np.zeros(3))


def test_one_array_warns_of_no_other_policy():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AdaFactor((3,), nonfinite="propagate").update(np.ones(3), np.full(3, np.nan))
        with pytest.raises(FloatingPointError):
            AdaFactor((3,)).update(np.ones(3), np.full(3, np.nan))


def test_an_error_of_the_category_comes_after_the_step_was_counted():
    opt = optimizer()
    array = AdaFactor((3,), nonfinite="skip")
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdafactorWarning)
        with pytest.raises(SkippedStepWarning):
            opt.step(BAD)
        with pytest.raises(SkippedStepWarning):
            array.update(np.ones(3), np.full(3, np.nan))
    assert opt.skipped == array.skipped == 1


@pytest.mark.parametrize("shape", [(4, 3), (5,), (2, 3, 4), ()])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, bfloat16])
def test_a_tensor_that_cannot_move_is_named_once(dtype, shape):
    def stepped(opt, steps=3):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(steps):
                report = opt.step({name: np.ones(x.shape) for name, x in opt.params.items()})
        return report, caught

    params = {"w": np.ones(shape, dtype), "z": np.zeros(shape, dtype)}
    opt = Optimizer(params, "numpy")
    report, (warning,) = stepped(opt)
    assert report.stuck.tolist() == [False, True] and not report.skipped
    assert warning.category is StuckTensorWarning
    assert str(warning.message) == (
        "params['z'] cannot move: all zeros, and the step size is RMS(param); give their group "
        "eps_scale=1e-3 or scale_parameter=False"
    )
    assert_said_at(
        warning, "report = opt.step({name: np.ones(x.shape) for name, x in opt.params.items()})"
    )
    for again in (opt, copy.copy(opt), pickle.loads(pickle.dumps(opt))):
        assert not stepped(again)[1]
    opt.add_param_group({"params": {"y": np.zeros(shape, dtype)}})
    _, (warning,) = stepped(opt)
    assert str(warning.message).startswith("params['y'] cannot move")
    opt.remove("y")
    assert not stepped(opt)[1]
    for moves in (
        Optimizer({"z": np.zeros(shape, dtype)}),
        Optimizer({"z": np.zeros(shape, dtype)}, "numpy", scale_parameter=False),
        Optimizer({"z": np.zeros(shape, dtype)}, "numpy", lr=0.0),
    ):
        assert not stepped(moves)[1]


def test_many_tensors_that_cannot_move_are_one_warning():
    opt = Optimizer([np.zeros(2) for _ in range(9)], "numpy")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opt.step([np.ones(2)] * 4 + [None] * 5)
        opt.step([None] * 4 + [np.ones(2)] * 5)
        opt.step([np.ones(2)] * 9)
    assert [str(w.message).split(" cannot")[0] for w in caught] == [
        "params['0'], params['1'], params['2'], params['3']",
        "params['4'], params['5'], params['6'], params['7'], params['8']",
    ]
    opt = Optimizer([np.zeros(2) for _ in range(9)], "numpy")
    with pytest.warns(StuckTensorWarning, match=r"params\['4'\] and 4 more cannot move"):
        opt.step([np.ones(2)] * 9)


@pytest.mark.parametrize("shape", [(4, 3), (5,), ()])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, bfloat16])
def test_one_array_that_cannot_move_is_told_once(dtype, shape):
    opt, param = AdaFactor(shape), np.zeros(shape, dtype)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            opt.update(param, np.ones(shape))
        pickle.loads(pickle.dumps(opt)).update(param, np.ones(shape))
        AdaFactor(shape, scale_parameter=False).update(param, np.ones(shape))
    (warning,) = caught
    assert warning.category is StuckTensorWarning
    assert str(warning.message).startswith("param cannot move: all zeros, and the step size is RMS")
    assert_said_at(warning, "opt.update(param, np.ones(shape))")
