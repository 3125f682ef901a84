"""``skip_above`` leaves out steps whose gradients are far above the usual, and a resumed run does too."""

import copy
import json
import math
import pickle
import statistics
import warnings

import numpy as np
import pytest

from adafactor_native import Optimizer, SkippedStepWarning
from adafactor_native.conventions import CONVENTIONS
from oracle.halves_reference import bfloat16

SHAPES = {"w": (6, 5), "b": (5,), "k": (2, 3, 4), "s": ()}
WINDOW, FEWEST = 64, 16
ARGUMENTS = {"t5x": {"learning_rate": 0.1}, "big_vision": {"lr": 0.1}}


def optimizer(dtype=np.float32, convention="paper", **arguments):
    rng = np.random.default_rng(0)
    params = {name: np.asarray(rng.standard_normal(s), dtype) for name, s in SHAPES.items()}
    return Optimizer(params, convention, **{**ARGUMENTS.get(convention, {}), **arguments})


def gradients(seed, norm=None):
    """Return gradients, of this norm where one is given."""
    rng = np.random.default_rng([1, seed])
    grads = {name: np.asarray(rng.standard_normal(s)) for name, s in SHAPES.items()}
    if norm is None:
        return grads
    own = math.sqrt(sum(float((grad**2).sum()) for grad in grads.values()))
    return {name: grad * (norm / own) for name, grad in grads.items()}


def bits(opt):
    return {
        key: value.tobytes()
        for key, value in opt.state_dict(params=True).items()
        if key not in ("header", "t")
    }


def norms(seed, n):
    """Return norms of a run: usual ones, spikes, and a lasting change in the middle."""
    rng = np.random.default_rng(seed)
    usual = np.exp(rng.normal(0, 0.3, n)) * np.where(np.arange(n) < n // 2, 1.0, 20.0)
    return np.where(rng.random(n) < 0.1, usual * 30, usual).tolist()


def expected_spikes(run, k):
    """Return which steps of a run are spikes, by the rule as the docstring has it."""
    seen, spikes = [], []
    for norm in run:
        median = statistics.median(seen[-WINDOW:]) if len(seen) >= FEWEST else 0.0
        spikes.append(median > 0 and norm > k * median)
        seen.append(norm)
    return spikes


@pytest.mark.parametrize("seed", range(5))
def test_which_steps_are_left_out(seed):
    run, k = norms(seed, 250), 4.0
    opt = optimizer(skip_above=k)
    reports = [opt.step(gradients(i, norm)) for i, norm in enumerate(run)]
    # By the norms that steps had, for theirs differ from those asked for in the last digits.
    expected = expected_spikes([report.grad_norm for report in reports], k)
    assert [report.spike for report in reports] == expected
    assert [report.skipped for report in reports] == expected
    assert 5 < sum(expected) < 125 and opt.skipped == sum(expected)
    assert opt.t == len(run) - sum(expected)
    np.testing.assert_allclose([report.grad_norm for report in reports], run, rtol=1e-12)
    assert sum(expected[125:]) > sum(expected[:125]) > 0  # the change is a spike until it is usual
    assert not all(expected[-30:])


@pytest.mark.parametrize("nonfinite", ["raise", "skip", "propagate"])
@pytest.mark.parametrize("atomic", ["all", "tensor"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, bfloat16])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_spike_changes_nothing_and_other_steps_are_as_without_the_rule(
    convention, dtype, atomic, nonfinite
):
    arguments = {"atomic": atomic, "nonfinite": nonfinite, "beta1": 0.9}
    opt = optimizer(dtype, convention, skip_above=3.0, **arguments)
    plain = optimizer(dtype, convention, **arguments)
    for i in range(20):
        grads = gradients(i, 0.5)
        opt.step(grads)
        plain.step(grads)
    before = bits(opt)
    assert before == bits(plain)
    report = opt.step(gradients(99, 1.6))
    assert report.spike and report.skipped and not report.stepped.any()
    assert bits(opt) == before and (opt.t, opt.skipped) == (20, 1)
    assert opt.counts.tolist() == [20] * 4
    for one in (opt, plain):
        assert not one.step(gradients(100, 1.4)).spike
    assert bits(opt) == bits(plain)


def test_the_norm_is_that_before_it_is_clipped_and_after_it_is_unscaled():
    opt = optimizer(skip_above=3.0, max_grad_norm=0.1)
    plain = optimizer(max_grad_norm=0.1)
    for i in range(20):
        scale = 2.0**i
        grads = {name: grad * scale for name, grad in gradients(i, 1.0).items()}
        for one in (opt, plain):
            assert not one.step(grads, grad_scale=scale).skipped
    assert bits(opt) == bits(plain)
    report = opt.step(gradients(20, 3.1))
    assert report.spike and report.grad_norm == pytest.approx(3.1)
    assert report.norm_limit == pytest.approx(3.0)
    assert bits(opt) == bits(plain)


def test_no_rule_before_sixteen_norms_and_none_where_the_usual_is_zero():
    opt = optimizer(skip_above=2.0)
    for i in range(FEWEST):
        report = opt.step(gradients(i, 100.0**i if i < 5 else 1.0))
        assert not report.spike and report.norm_limit == math.inf
    assert opt.step(gradients(99, 2.1)).spike
    opt = optimizer(skip_above=2.0)
    for _ in range(40):
        opt.step({name: np.zeros(shape) for name, shape in SHAPES.items()})
    assert not opt.step(gradients(0, 1.0)).spike


def test_steps_without_gradients_and_with_other_faults_have_no_norm():
    opt = optimizer(skip_above=2.0, nonfinite="skip")
    for i in range(FEWEST):
        opt.step(gradients(i, 1.0))
        opt.step(dict.fromkeys(SHAPES))
        bad = {**gradients(i, 1.0), "s": np.array(np.nan)}
        report = opt.step(bad)
        assert report.skipped and not report.spike
    assert len(opt._tensors.norms()) == FEWEST and opt.t == 2 * FEWEST
    assert opt.step(gradients(99, 2.1)).spike


def test_what_is_not_finite_is_the_affair_of_nonfinite():
    bad = {**gradients(0, 1.0), "b": np.full(5, np.inf)}
    for nonfinite in ("raise", "skip", "propagate"):
        opt = optimizer(skip_above=2.0, nonfinite=nonfinite)
        for i in range(20):
            opt.step(gradients(i, 1.0))
        if nonfinite == "raise":
            with pytest.raises(FloatingPointError, match="grads"):
                opt.step(bad)
        else:
            report = opt.step(bad)
            assert report.skipped is (nonfinite == "skip") and not report.spike
        assert len(opt._tensors.norms()) == 20


def test_accumulated_gradients_are_judged_by_their_mean():
    opt = optimizer(skip_above=2.0)
    for i in range(20):
        opt.step(gradients(i, 1.0))
    before = bits(opt)
    for _ in range(2):
        opt.accumulate(gradients(99, 2.1))
    assert opt.step().spike
    assert bits(opt) == before and not opt.memory.by_kind.get("sum")


def resumed_by_state(opt, **arguments):
    other = optimizer(**arguments)
    other.load_state_dict(opt.state_dict(params=True))
    return other


def resumed_by_file(opt, tmp_path, **arguments):
    opt.save(tmp_path / "x.npz", params=True)
    other = optimizer(**arguments)
    other.load(tmp_path / "x.npz")
    return other


@pytest.mark.parametrize("way", ["state", "other script", "file", "pickle", "copy", "replace"])
@pytest.mark.parametrize("after", [0, 10, 40, 63, 64, 65, 150])
def test_a_resumed_run_leaves_out_the_same_steps(way, after, tmp_path):
    run, k = norms(7, 200), 3.0
    opt = optimizer(skip_above=k)
    for i in range(after):
        opt.step(gradients(i, run[i]))
    other = {
        "state": lambda: resumed_by_state(opt, skip_above=k),
        "other script": lambda: resumed_by_state(opt),
        "file": lambda: resumed_by_file(opt, tmp_path),
        "pickle": lambda: pickle.loads(pickle.dumps(opt)),
        "copy": lambda: copy.deepcopy(opt),
        "replace": lambda: copy.copy(opt),
    }[way]()
    if way == "replace":
        other.replace("w", other.params["w"].copy())
    assert other.skip_above == k and other.skipped == opt.skipped
    for i in range(after, len(run)):
        report, again = (one.step(gradients(i, run[i])) for one in (opt, other))
        assert report.spike is again.spike and report.norm_limit == again.norm_limit
    assert bits(opt) == bits(other)


def test_a_state_without_the_rule_leaves_that_of_the_script():
    plain = optimizer()
    plain.step(gradients(0))
    assert "skip_above" not in json.loads(plain.state_dict()["header"].tobytes())
    opt = optimizer(skip_above=5.0)
    opt.load_state_dict(plain.state_dict())
    assert opt.skip_above == 5.0 and opt._tensors.norms() == []
    saved = opt.state_dict()
    for own in (None, 3.0):
        other = optimizer(skip_above=own)
        other.load_state_dict(saved, keep=["skip_above"])
        assert other.skip_above == own
        other.load_state_dict(saved)
        assert other.skip_above == 5.0


def test_it_can_be_set_and_a_pause_forgets():
    opt = optimizer()
    for i in range(20):
        opt.step(gradients(i, 1.0))
    opt.skip_above = 2.0
    assert not opt.step(gradients(20, 5.0)).spike
    for i in range(20):
        opt.step(gradients(i, 1.0))
    assert opt.step(gradients(20, 5.0)).spike
    opt.skip_above = 6.0
    assert not opt.step(gradients(20, 5.0)).spike
    opt.skip_above = None
    assert not opt.step(gradients(20, 500.0)).spike
    opt.skip_above = 2.0
    assert opt.step(gradients(20, 5.0)).norm_limit == math.inf


def test_it_is_said_and_too_many_in_a_row_raise():
    opt = optimizer(skip_above=2.0, max_skipped=3)
    for i in range(20):
        opt.step(gradients(i, 1.0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            opt.step(gradients(99, 4.0))
    assert [warning.category for warning in caught] == [SkippedStepWarning] * 2
    assert str(caught[0].message) == (
        "a step was left out because the norm of its gradients is 4, above 2, which is skip_above "
        "times the usual; t is 20"
    )
    before = bits(opt)
    with pytest.raises(FloatingPointError, match=r"4 steps in a row .* this one because the norm"):
        opt.step(gradients(99, 4.0))
    assert bits(opt) == before and opt.skipped == 4
    opt.step(gradients(0, 1.0))
    assert opt.step(gradients(99, 4.0)).spike


def test_the_report_has_it_as_strict_json():
    opt = optimizer(skip_above=2.0)
    report = opt.step(gradients(0, 1.0))
    flat = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert flat["norm_limit"] is None and flat["spike"] is False and flat["skipped"] is False
    for i in range(20):
        report = opt.step(gradients(i, 1.0))
    assert report.as_dict()["norm_limit"] == report.norm_limit == pytest.approx(2.0)
    report = opt.step(gradients(99, 2.1))
    assert report.as_dict()["spike"] is report.as_dict()["skipped"] is True
    assert optimizer().step(gradients(0)).norm_limit == math.inf
    pickle.loads(pickle.dumps(report))


@pytest.mark.parametrize(
    "value, error, text",
    [
        (1.0, ValueError, "skip_above is 1.0, must be a finite number > 1 or None"),
        (0, ValueError, "skip_above is 0.0, must be a finite number > 1 or None"),
        (-3, ValueError, "skip_above is -3.0, must be a finite number > 1 or None"),
        (math.inf, ValueError, "skip_above is inf, must be a finite number > 1 or None"),
        (math.nan, ValueError, "skip_above is nan, must be a finite number > 1 or None"),
        ("3", TypeError, "skip_above is a str, must be a finite number > 1 or None"),
        (10**400, ValueError, "skip_above is beyond float64, must be a finite number > 1 or None"),
    ],
)
def test_what_is_refused(value, error, text):
    with pytest.raises(error, match="^" + text):
        optimizer(skip_above=value)
    opt = optimizer(skip_above=2.0)
    with pytest.raises(error, match="^" + text):
        opt.skip_above = value
    assert opt.skip_above == 2.0


@pytest.mark.parametrize(
    "change",
    [
        {"skip_above": 1.0},
        {"skip_above": "x"},
        {"norms": 3},
        {"norms": [1.0] * 65},
        {"norms": [1.0, -1.0]},
        {"norms": [math.nan]},
        {"norms": [math.inf]},
        {"norms": ["x"]},
        {"norms": [[]]},
        {"norms": [10**400]},
    ],
)
def test_a_state_with_other_norms_is_refused(change):
    opt = optimizer(skip_above=2.0)
    for i in range(20):
        opt.step(gradients(i, 1.0))
    state = opt.state_dict(params=True)
    header = json.loads(state["header"].tobytes())
    assert len(header["norms"]) == 20
    text = json.dumps({**header, **change}).encode()
    before, own = bits(opt), opt._tensors.norms()
    with pytest.raises((TypeError, ValueError), match=r"^header\['(skip_above|norms)'\]"):
        opt.load_state_dict({**state, "header": np.frombuffer(text, np.uint8)})
    assert bits(opt) == before and opt._tensors.norms() == own
