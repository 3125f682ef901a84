"""The extension's own classes refuse what the package never gives them."""

import numpy as np
import pytest

from adafactor_native import Optimizer
from adafactor_native._runtime import _core

RULE = {name: 0 for name in _core.Rule.fields} | {"clip_threshold": 1.0, "bias_correction": False}


def plan(**changes):
    values = {
        "rules": [_core.Rule(**RULE)],
        "lr": [0.5],
        "decay": [0.0],
        "nonfinite": _core.NonFinite["raise"],
        "all_or_none": True,
        "max_grad_norm": np.inf,
        "skip_above": np.inf,
        "num_threads": 0,
        "carry_param_rms": False,
        "seed": 0,
    }
    return _core.Plan(**{**values, **changes})


def test_a_rule_has_every_field_as_it_was_given():
    values = {name: bool(k % 2) for k, name in enumerate(_core.Rule.fields)}
    rule = _core.Rule(**values)
    assert {name: getattr(rule, name) for name in values} == values
    with pytest.raises(AttributeError):
        rule.beta2 = 0.5


@pytest.mark.parametrize("name", _core.Rule.fields)
def test_a_rule_lacks_no_field(name):
    values = {other: value for other, value in RULE.items() if other != name}
    with pytest.raises(TypeError, match=f"^Rule has no {name}, must have every field"):
        _core.Rule(**values)


def test_a_rule_has_no_other_field_and_no_other_type():
    with pytest.raises(TypeError, match=r"^Rule has the argument beta3, must have fields of Rule"):
        _core.Rule(**RULE, beta3=0.5)
    with pytest.raises(TypeError, match=r"^Rule has the beta2 'x', must have another type"):
        _core.Rule(**{**RULE, "beta2": "x"})


def test_policies_are_an_enum():
    assert list(_core.NonFinite.__members__) == ["raise", "skip", "propagate"]
    with pytest.raises(TypeError):
        plan(nonfinite=1)


def test_a_plan_fits_its_rules_and_its_tensors():
    with pytest.raises(ValueError, match="as many lr and decay as rules"):
        plan(lr=[0.5, 0.5])
    opt = Optimizer([np.ones(3)])
    with pytest.raises(ValueError, match="as many grads as tensors, and rules as groups"):
        opt._tensors.step(plan(rules=[], lr=[], decay=[]), [np.ones(3)], 1.0, list, list)
    with pytest.raises(ValueError, match="as many grads as tensors, and rules as groups"):
        opt._tensors.step(plan(), [], 1.0, list, list)
    with pytest.raises(ValueError, match="as many counts as tensors"):
        opt._tensors.set_counts(1, 0, [])


def test_a_state_that_has_moved_is_not_written_to():
    opt = Optimizer({"w": np.ones((2, 3))})
    opt.state["w"]["exp_row"].flags.writeable = False
    with pytest.raises(ValueError, match="is read-only, must be writeable"):
        opt.step({"w": np.ones((2, 3))})
    opt.state["w"]["exp_row"].flags.writeable = True
    opt.state["w"]["exp_row"].resize(5, refcheck=False)
    with pytest.raises(ValueError, match="has changed its memory, shape, strides or dtype"):
        opt.step({"w": np.ones((2, 3))})
