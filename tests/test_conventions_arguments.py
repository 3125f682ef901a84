"""What each convention takes, what it means by it, and what it refuses."""

import inspect
import re

import numpy as np
import pytest

from adafactor_native import Optimizer
from adafactor_native.conventions import CONVENTIONS
from adafactor_native.switches import PAPER, SWITCHES

# As the libraries document them. Where their first moment has a dtype of its own, ours has param's.
THEIRS = {
    "numpy": {},
    "paper": {},
    "huggingface": {
        "lr": None,
        "eps": (1e-30, 1e-3),
        "clip_threshold": 1.0,
        "decay_rate": -0.8,
        "beta1": None,
        "weight_decay": 0.0,
        "scale_parameter": True,
        "relative_step": True,
        "warmup_init": False,
    },
    "torch": {
        "lr": 1e-2,
        "beta2_decay": -0.8,
        "eps": (None, 1e-3),
        "d": 1.0,
        "weight_decay": 0.0,
        "foreach": None,
        "maximize": False,
    },
    "optax": {
        "learning_rate": None,
        "min_dim_size_to_factor": 128,
        "decay_rate": 0.8,
        "decay_offset": 0,
        "multiply_by_parameter_scale": True,
        "clipping_threshold": 1.0,
        "momentum": None,
        "dtype_momentum": None,
        "weight_decay_rate": None,
        "eps": 1e-30,
        "factored": True,
        "weight_decay_mask": None,
    },
    "keras": {
        "learning_rate": 1e-3,
        "beta_2_decay": -0.8,
        "epsilon_1": 1e-30,
        "epsilon_2": 1e-3,
        "clip_threshold": 1.0,
        "relative_step": True,
        "weight_decay": None,
    },
    "t5x": {
        "learning_rate": None,
        "factored": True,
        "multiply_by_parameter_scale": True,
        "beta1": None,
        "decay_rate": 0.8,
        "step_offset": 0,
        "clipping_threshold": 1.0,
        "weight_decay_rate": None,
        "min_dim_size_to_factor": 128,
        "epsilon1": 1e-30,
        "epsilon2": 1e-3,
        "dtype_momentum": None,
        "weight_decay_rate_lr_exponent": None,
    },
    "big_vision": {
        "lr": None,
        "wd": 0.0,
        "schedule": None,
        "min_dim_size_to_factor": 32,
        "decay_rate": 0.8,
        "decay_offset": 0,
        "beta2_cap": 0.999,
        "clipping_threshold": None,
        "momentum": 0.9,
        "dtype_momentum": None,
        "eps": 1e-30,
    },
}

BY_COUNT = {"t_scope": "model", "relative_step": False}
REQUIRED = {"t5x": {"learning_rate": 0.5}, "big_vision": {"lr": 0.5}}

# All switches in which a convention's defaults differ from the paper's
DIFFERENT = {
    "numpy": {
        "relative_step": False,
        "decay_rate": None,
        "beta2": 0.999,
        "eps_mode": "both",
        "eps_scale": 0.0,
    },
    "paper": {},
    "huggingface": {"factored_axes": "last_two", "weight_decay_mode": "step"},
    "torch": {"factored_axes": "last_two", "eps": None, "eps_mode": "clamp"},
    "optax": {
        **BY_COUNT,
        "lr": 1.0,
        "factored_axes": "two_largest",
        "min_dim_size_to_factor": 128,
        "weight_decay_mode": "alone",
    },
    "keras": {
        "lr": 1e-3,
        "factored_axes": "last_two",
        "t_scope": "model",
        "scale_after_decay": True,
    },
    "t5x": {
        **BY_COUNT,
        "lr": 0.5,
        "factored_axes": "two_largest",
        "min_dim_size_to_factor": 128,
        "rms_scope": "matrix",
        "weight_decay_mode": "alone",
    },
    "big_vision": {
        **BY_COUNT,
        "lr": 0.5,
        "factored_axes": "two_largest",
        "min_dim_size_to_factor": 32,
        "scale_parameter": False,
        "eps_scale": 0.0,
        "beta2": 0.999,
        "clip_threshold": None,
        "beta1": 0.9,
        "momentum_of": "u",
        "weight_decay_mode": "schedule",
    },
}

# Arguments, and the switches that they set
MEANS = [
    ("huggingface", {"eps": (1e-5, 0.5)}, {"eps": 1e-5, "eps_scale": 0.5}),
    ("huggingface", {"lr": 0.1, "relative_step": False}, {"lr": 0.1, "relative_step": False}),
    ("huggingface", {"warmup_init": True}, {"warmup_init": True}),
    ("huggingface", {"beta1": 0.9, "weight_decay": 0.1}, {"beta1": 0.9, "weight_decay": 0.1}),
    ("torch", {"eps": (1e-5, 0.5)}, {"eps": 1e-5, "eps_scale": 0.5}),
    ("torch", {"d": 2, "beta2_decay": -0.5}, {"clip_threshold": 2.0, "decay_rate": -0.5}),
    ("torch", {"maximize": True, "foreach": True}, {"maximize": True}),
    ("optax", {"learning_rate": 0.1, "momentum": 0.9}, {"lr": 0.1, "beta1": 0.9}),
    ("optax", {"decay_rate": 0.5, "decay_offset": 3}, {"decay_rate": -0.5, "decay_offset": 3}),
    ("optax", {"factored": False, "eps": 1e-6}, {"factored_axes": "none", "eps": 1e-6}),
    ("optax", {"weight_decay_rate": 0.1}, {"weight_decay": 0.1}),
    ("optax", {"clipping_threshold": None}, {"clip_threshold": None}),
    ("optax", {"multiply_by_parameter_scale": False}, {"scale_parameter": False}),
    ("keras", {"learning_rate": 0.1, "beta_2_decay": -0.5}, {"lr": 0.1, "decay_rate": -0.5}),
    ("keras", {"epsilon_1": 1e-6, "epsilon_2": 0.5}, {"eps": 1e-6, "eps_scale": 0.5}),
    (
        "keras",
        {"relative_step": False, "weight_decay": 1},
        {"relative_step": False, "weight_decay": 1},
    ),
    ("t5x", {"learning_rate": 0.1, "step_offset": 3}, {"lr": 0.1, "decay_offset": 3}),
    ("t5x", {"learning_rate": 0.5, "epsilon1": 1, "epsilon2": 2}, {"eps": 1.0, "eps_scale": 2.0}),
    (
        "t5x",
        {"learning_rate": 0.5, "weight_decay_rate": 1, "weight_decay_rate_lr_exponent": 2},
        {"weight_decay": 1.0, "weight_decay_lr_exponent": 2.0},
    ),
    ("t5x", {"lr": 0.5, "factored": False}, {"factored_axes": "none"}),
    ("big_vision", {"lr": 0.1, "wd": 0.2}, {"lr": 0.1, "weight_decay": 0.2}),
    ("big_vision", {"lr": 0.5, "beta2_cap": 0.9, "momentum": None}, {"beta2": 0.9, "beta1": None}),
    # Switches besides: they count more
    ("torch", {"eps_mode": "grad_squared"}, {"eps_mode": "grad_squared"}),
    ("torch", {"decay_offset": 3}, {"decay_offset": 3}),
    ("optax", {"lr": 0.25}, {"lr": 0.25}),
    ("paper", {"lr": 0.25, "beta1": 0.5}, {"lr": 0.25, "beta1": 0.5}),
    ("numpy", {"eps": None, "bias_correction": True}, {"eps": None, "bias_correction": True}),
]


def switches(convention, **arguments):
    group = Optimizer([np.ones((2, 3))], convention, **arguments).param_groups[0]
    return {name: group[name] for name in SWITCHES}


def test_there_is_a_convention_of_each_name():
    assert set(CONVENTIONS) == set(THEIRS)
    assert inspect.signature(Optimizer).parameters["convention"].default == "paper"


@pytest.mark.parametrize("convention", THEIRS)
def test_arguments_and_defaults_are_the_librarys(convention):
    theirs = THEIRS[convention]
    arguments = CONVENTIONS[convention].arguments
    assert {name: arguments[name] for name in theirs} == theirs
    assert CONVENTIONS[convention].own.keys() <= theirs.keys()


@pytest.mark.parametrize("convention", THEIRS)
def test_what_the_defaults_mean(convention):
    expected = {**PAPER, **DIFFERENT[convention]}
    assert switches(convention, **REQUIRED.get(convention, {})) == expected


@pytest.mark.parametrize("convention", THEIRS)
def test_docstrings_tell_version_and_differences(convention):
    text = CONVENTIONS[convention].documentation
    assert convention == "paper" or "Unlike the paper" in text
    assert convention in ("numpy", "paper") or re.search(r"\(\d+\.\d+\.\d+\)|\([0-9a-f]{7}\)", text)


@pytest.mark.parametrize("convention, arguments, expected", MEANS)
def test_what_arguments_mean(convention, arguments, expected):
    defaults = switches(convention, **REQUIRED.get(convention, {}))
    assert switches(convention, **arguments) == {**defaults, **expected}


def test_arguments_of_groups_count_more_than_those_of_the_model():
    groups = [
        {"params": [np.ones(3)]},
        {"params": [np.ones(3)], "learning_rate": 0.5, "decay_rate": 0.25},
        {"params": [np.ones(3)], "lr": 0.125},
    ]
    first, second, third = Optimizer(groups, "optax", learning_rate=2.0).param_groups
    assert (first["lr"], second["lr"], third["lr"]) == (2.0, 0.5, 0.125)
    assert (first["decay_rate"], second["decay_rate"]) == (-0.8, -0.25)
    groups = [{"params": [np.ones(3)], "learning_rate": 0.5}]
    assert Optimizer(groups, "optax", lr=2.0).param_groups[0]["lr"] == 0.5
    groups = [{"params": [np.ones(3)], "eps_scale": 0.5}]
    group = Optimizer(groups, "torch", eps=(1e-6, 1e-2)).param_groups[0]
    assert (group["eps"], group["eps_scale"]) == (1e-6, 0.5)
    groups = [{"params": [np.ones(3)], "learning_rate": 0.5}]
    assert Optimizer(groups, "t5x").param_groups[0]["lr"] == 0.5


REFUSED = [
    (
        "numpy",
        {"learning_rate": 1},
        TypeError,
        "learning_rate is unknown to convention 'numpy', where it",
    ),
    (
        "torch",
        {"clip": 1},
        TypeError,
        "clip is unknown to convention 'torch', did you mean 'clip",
    ),
    (
        "torch",
        {"lr": -1},
        ValueError,
        "lr is -1.0, must be a finite number >= 0 or a callable of t",
    ),
    ("torch", {"beta2_decay": 0.8}, ValueError, "beta2_decay is 0.8, must be a finite number <= 0"),
    ("torch", {"eps": 1e-3}, TypeError, "eps is 0.001, must be a pair: eps and eps_scale"),
    ("torch", {"eps": (-1, 0)}, ValueError, "eps[0] is -1.0, must be a finite number >= 0 or None"),
    ("torch", {"eps": (0, None)}, TypeError, "eps[1] is a NoneType, must be a finite number >= 0"),
    ("torch", {"d": 0.5}, ValueError, "d is 0.5, must be a number >= 1"),
    ("torch", {"foreach": 1}, TypeError, "foreach is a int, must be a bool"),
    (
        "torch",
        {"d": 1, "clip_threshold": 1},
        TypeError,
        "clip_threshold is given twice, as d and as",
    ),
    (
        "torch",
        {"eps": (0, 0), "eps_scale": 1},
        TypeError,
        "eps_scale is given twice, as eps and as",
    ),
    ("huggingface", {"lr": 0.1}, ValueError, "lr is 0.1, must be None with relative_step=True"),
    (
        "huggingface",
        {"relative_step": False},
        ValueError,
        "lr is None, must be a number or a calla",
    ),
    (
        "huggingface",
        {"lr": 0.1, "relative_step": False, "warmup_init": True},
        ValueError,
        "warmup_init is True, must be False without relative_step",
    ),
    (
        "huggingface",
        {"decay_rate": 0.8},
        ValueError,
        "decay_rate is 0.8, must be a finite number <=",
    ),
    ("huggingface", {"beta1": 1.0}, ValueError, "beta1 is 1.0, must be a number in [0, 1) or None"),
    ("optax", {"decay_rate": -0.8}, ValueError, "decay_rate is -0.8, must be a finite number >= 0"),
    (
        "optax",
        {"lr": 1, "learning_rate": 1},
        TypeError,
        "lr is given twice, as lr and as learning_",
    ),
    ("optax", {"learning_rate": "x"}, TypeError, "learning_rate is a str, must be a finite number"),
    (
        "optax",
        {"momentum": -0.1},
        ValueError,
        "momentum is -0.1, must be a number in [0, 1) or None",
    ),
    ("optax", {"factored": 1}, TypeError, "factored is a int, must be a bool"),
    ("optax", {"decay_offset": 0.5}, TypeError, "decay_offset is a float, must be an int >= 0"),
    ("optax", {"decay_offset": -1}, ValueError, "decay_offset is -1, must be an int >= 0"),
    (
        "optax",
        {"dtype_momentum": "int8"},
        TypeError,
        "dtype_momentum is 'int8', must be bfloat16, fl",
    ),
    (
        "optax",
        {"dtype_momentum": "float32", "momentum": 0.9},
        TypeError,
        "momentum_dtype is float32, must be float64 or None for params['0'] of float64",
    ),
    (
        "optax",
        {"weight_decay_mask": 3},
        TypeError,
        "weight_decay_mask is a int, must be a callable",
    ),
    (
        "optax",
        {"weight_decay_mask": ["w"]},
        ValueError,
        "weight_decay_mask has 'w', must have names",
    ),
    (
        "optax",
        {"weight_decay_mask": {}},
        ValueError,
        "weight_decay_mask has no '0', must have every",
    ),
    (
        "optax",
        {"weight_decay_mask": lambda name: None},
        TypeError,
        "weight_decay_mask of '0' is a NoneType, must be a bool",
    ),
    ("keras", {"clipnorm": 1}, TypeError, "clipnorm is unknown to convention 'keras', must be"),
    ("keras", {"epsilon_1": -1}, ValueError, "epsilon_1 is -1.0, must be a finite number >= 0"),
    ("t5x", {}, TypeError, "learning_rate is a NoneType, must be a finite number >= 0 or a callab"),
    ("big_vision", {}, TypeError, "lr is a NoneType, must be a finite number >= 0 or a callable"),
    (
        "big_vision",
        {"lr": 1, "dtype_momentum": "float16"},
        TypeError,
        "dtype_momentum is 'float16', must be bfloat16, fl",
    ),
    (
        "big_vision",
        {"lr": 1, "schedule": 0.5},
        TypeError,
        "schedule is a float, must be a callable",
    ),
    ("numpy", {"warmup_init": True}, ValueError, "warmup_init is True, must be False without rel"),
    (
        "numpy",
        {"bias_correction": True, "decay_rate": -0.8},
        ValueError,
        "bias_correction is True, must be False with a decay_rate",
    ),
    (
        "numpy",
        {"bias_correction": True, "beta2": 1},
        ValueError,
        "beta2 is 1.0, must be below 1 with bias_correction",
    ),
    (
        "keras",
        {"weight_decay_mode": "step"},
        ValueError,
        "scale_after_decay is True, must be False with weight_decay_mode 'step'",
    ),
    (
        "numpy",
        {"weight_decay_lr_exponent": 2},
        ValueError,
        "weight_decay_lr_exponent is 2.0, must be None with weight_decay_mode 'lr'",
    ),
    (
        "numpy",
        {"weight_decay": lambda t: 0.1, "weight_decay_mode": "step"},
        ValueError,
        "weight_decay is a callable, must be a number with weight_decay_mode 'step'",
    ),
    (
        "numpy",
        {"eps_mode": "x"},
        ValueError,
        "eps_mode is 'x', must be 'both', 'grad_squared', 'cl",
    ),
    (
        "numpy",
        {"factored_axes": "x"},
        ValueError,
        "factored_axes is 'x', must be 'matrix', 'last_tw",
    ),
    (
        "numpy",
        {"factored_axes": (1, 1)},
        ValueError,
        "factored_axes is (1, 1), must be 'matrix', 'l",
    ),
    (
        "numpy",
        {"factored_axes": (0, 1, 2)},
        TypeError,
        "factored_axes is (0, 1, 2), must be 'matrix",
    ),
    (
        "numpy",
        {"factored_axes": 1},
        TypeError,
        "factored_axes is 1, must be 'matrix', 'last_two', '",
    ),
    (
        "numpy",
        {"factored_axes": (1, -1)},
        ValueError,
        "factored_axes is (1, -1), must be two different axes of params['0'] of shape (2, 3)",
    ),
    (
        "numpy",
        {"factored_axes": (0, 2)},
        ValueError,
        "factored_axes is (0, 2), must be two different axes of params['0'] of shape (2, 3)",
    ),
]


@pytest.mark.parametrize("convention, arguments, error, text", REFUSED)
def test_arguments_refused(convention, arguments, error, text):
    with pytest.raises(error, match="^" + re.escape(text)) as caught:
        switches(convention, **arguments)
    assert caught.type is error


@pytest.mark.parametrize("convention", ["Seed", "adafactor", None, ["torch"]], ids=repr)
def test_convention_refused(convention):
    with pytest.raises(
        ValueError, match=re.escape(f"convention is {convention!r}, must be one of")
    ):
        Optimizer([np.ones(3)], convention)


# Values that no switch of a kind takes, and what it must be
NUMBERS = {
    "eps": ("a finite number >= 0 or None", [-1.0, np.nan, np.inf], ["x", [1]]),
    "eps_scale": ("a finite number >= 0", [-1.0, np.nan, np.inf], ["x", None]),
    "beta2": ("a number in [0, 1]", [-0.1, 1.1, np.nan], ["x", None]),
    "beta1": ("a number in [0, 1) or None", [-0.1, 1.0, np.nan], ["x"]),
    "decay_rate": ("a finite number <= 0 or None", [0.8, -np.inf, np.nan], ["x"]),
    "clip_threshold": ("a number > 0 or None", [0.0, -1.0, np.nan], ["x"]),
    "weight_decay": ("a finite number >= 0 or a callable of t", [-1.0, np.nan], [None, "x"]),
    "lr": ("a finite number >= 0 or a callable of t", [-1.0, np.nan, np.inf], [None, "x"]),
    "decay_offset": ("an int >= 0", [-1], [1.5, "x", None]),
    "min_dim_size_to_factor": ("an int >= 0", [-1], [1.5, "x", None]),
    **{
        name: ("a bool", [], ["x", None, 1])
        for name, switch in SWITCHES.items()
        if isinstance(switch.default, bool)
    },
    "bias_correction": ("a bool or 'beta2'", [], [None, 1]),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_switches_refused(name):
    must_be, out_of_range, of_wrong_type = NUMBERS[name]
    for value in out_of_range:
        with pytest.raises(ValueError, match=f"^{name} is {value}, must be {re.escape(must_be)}$"):
            switches("numpy", **{name: value})
    for value in of_wrong_type:
        text = f"^{name} is a {type(value).__name__}, must be {re.escape(must_be)}$"
        with pytest.raises(TypeError, match=text):
            switches("numpy", **{name: value})
