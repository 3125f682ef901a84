"""The switches a step is made of: what each may be, and what the extension is told of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from math import inf, nan
from typing import Any, NamedTuple

import numpy as np

from adafactor_native import hyperparameters as hyper
from adafactor_native._runtime import _core
from adafactor_native.factoring import check_factored_axes
from adafactor_native.halves import bfloat16

Switches = dict[str, Any]


def _dtype_or_none(name: str, value: Any) -> np.dtype[Any] | None:
    if value is None:
        return None
    if value == "bfloat16":
        return bfloat16(f"{name} is 'bfloat16'")
    with contextlib.suppress(TypeError):
        dtype: np.dtype[Any] = np.dtype(value)
        if dtype in (np.float32, np.float64) or dtype.name == "bfloat16":
            return dtype
    raise TypeError(f"{name} is {value!r}, must be bfloat16, float32, float64 or None")


def _masters(name: str, value: Any) -> bool | str:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if not isinstance(value, str) or value != "split":
        raise ValueError(f"{name} is {value!r}, must be False, True or 'split'")
    return "split"


def _mask_or_none(name: str, value: Any) -> Any:
    if value is None or callable(value) or isinstance(value, Mapping):
        return value
    if isinstance(value, str) or not isinstance(value, Collection):
        raise TypeError(
            f"{name} is a {type(value).__name__}, must be a callable or a mapping from names to "
            "bools, a collection of names, or None"
        )
    return frozenset(value)


class Switch(NamedTuple):
    check: Callable[[str, Any], Any]
    default: Any  # the seed's


SWITCHES = {
    "lr": Switch(hyper.rate, 1e-2),
    "schedule": Switch(hyper.callable_or_none, None),
    "relative_step": Switch(hyper.boolean, False),
    "warmup_init": Switch(hyper.boolean, False),
    "scale_parameter": Switch(hyper.boolean, True),
    "eps_scale": Switch(hyper.non_negative, 0.0),
    "bias_correction": Switch(hyper.boolean, False),
    "maximize": Switch(hyper.boolean, False),
    "beta2": Switch(hyper.fraction, 0.999),
    "decay_rate": Switch(hyper.non_positive_or_none, None),
    "decay_offset": Switch(hyper.count, 0),
    "t_scope": Switch(hyper.one_of("tensor", "model"), "tensor"),
    "eps": Switch(hyper.non_negative_or_none, 1e-30),
    "eps_mode": Switch(hyper.one_of("seed", "grad_squared", "clamp", "root"), "seed"),
    "factored_axes": Switch(check_factored_axes, "matrix"),
    "min_dim_size_to_factor": Switch(hyper.count, 0),
    "clip_threshold": Switch(hyper.positive_or_none, 1.0),
    "rms_scope": Switch(hyper.one_of("tensor", "matrix"), "tensor"),
    "beta1": Switch(hyper.below_one_or_none, None),
    "momentum_of": Switch(hyper.one_of("step", "u"), "step"),
    "momentum_dtype": Switch(_dtype_or_none, None),
    "weight_decay": Switch(hyper.rate, 0.0),
    "weight_decay_mode": Switch(hyper.one_of("lr", "step", "alone", "schedule"), "lr"),
    "weight_decay_mask": Switch(_mask_or_none, None),
    "weight_decay_lr_exponent": Switch(hyper.finite_or_none, None),
    "scale_after_decay": Switch(hyper.boolean, False),
    "rounding": Switch(hyper.one_of("nearest", "stochastic"), "nearest"),
    "masters": Switch(_masters, False),
}

DEFAULTS: Switches = {name: switch.default for name, switch in SWITCHES.items()}

# What decides which arrays a tensor keeps, and which tensors decay: settled when they are added.
SETTLED = (
    "factored_axes",
    "min_dim_size_to_factor",
    "momentum_dtype",
    "weight_decay_mask",
    "masters",
)


def check_switches(switches: Mapping[str, Any], shown: Mapping[str, str]) -> Switches:
    """Return all switches checked, one by one and together; `shown` is what messages call them."""

    def name(switch: str) -> str:
        return shown.get(switch, switch)

    checked = {
        switch: known.check(name(switch), switches[switch]) for switch, known in SWITCHES.items()
    }
    if checked["warmup_init"] and not checked["relative_step"]:
        raise ValueError(f"{name('warmup_init')} is True, must be False without relative_step")
    if checked["bias_correction"] and checked["decay_rate"] is not None:
        raise ValueError(f"{name('bias_correction')} is True, must be False with a decay_rate")
    if checked["bias_correction"] and checked["beta2"] == 1:
        raise ValueError(f"{name('beta2')} is 1.0, must be below 1 with bias_correction")
    mode = checked["weight_decay_mode"]
    if checked["scale_after_decay"] and mode == "step":
        raise ValueError(
            f"{name('scale_after_decay')} is True, must be False with weight_decay_mode 'step': "
            "that decay depends on RMS(param)"
        )
    if checked["weight_decay_lr_exponent"] is not None and mode != "alone":
        raise ValueError(
            f"{name('weight_decay_lr_exponent')} is {checked['weight_decay_lr_exponent']}, must be "
            f"None with weight_decay_mode {mode!r}"
        )
    if callable(checked["weight_decay"]) and mode == "step":
        raise ValueError(
            f"{name('weight_decay')} is a callable, must be a number with weight_decay_mode 'step'"
        )
    if checked["rounding"] == "stochastic" and checked["masters"] == "split":
        raise ValueError(
            f"{name('rounding')} is 'stochastic', must be 'nearest' with masters 'split': the two "
            "halves are the whole number"
        )
    return checked


def rule_of(switches: Mapping[str, Any]) -> _core.Rule:
    """Return what the extension is told of a group once, for all steps until a switch changes."""
    eps = nan if switches["eps"] is None else switches["eps"]  # nan: the machine epsilon of param
    mode = switches["eps_mode"]
    decays_by_step = switches["weight_decay_mode"] == "step"
    return _core.Rule(
        beta2=switches["beta2"],
        decay_rate=nan if switches["decay_rate"] is None else switches["decay_rate"],
        decay_offset=switches["decay_offset"],
        bias_correction=switches["bias_correction"],
        eps_squares=eps if mode in ("seed", "grad_squared") else 0.0,
        eps_means=eps if mode == "root" else 0.0,
        eps_root=eps if mode == "seed" else 0.0,
        root_floor=eps if mode == "clamp" else 0.0,
        mean_floor=eps if mode == "clamp" else 0.0,
        clip_threshold=inf if switches["clip_threshold"] is None else switches["clip_threshold"],
        per_matrix=switches["rms_scope"] == "matrix",
        scale_parameter=switches["scale_parameter"],
        eps_scale=switches["eps_scale"],
        scale_after_decay=switches["scale_after_decay"],
        relative_step=switches["relative_step"],
        warmup=1e-6 if switches["warmup_init"] else 0.0,
        beta1=nan if switches["beta1"] is None else switches["beta1"],
        momentum_of_u=switches["momentum_of"] == "u",
        decay_by_step=switches["weight_decay"] if decays_by_step else 0.0,
        maximize=switches["maximize"],
        stochastic=switches["rounding"] == "stochastic",
        shared_t=switches["t_scope"] == "model",
    )


def are_constant(switches: Mapping[str, Any]) -> bool:
    """Whether `rates_at` is the same at every t."""
    return not any(callable(switches[name]) for name in ("lr", "schedule", "weight_decay"))


def rates_at(switches: Mapping[str, Any], t: int) -> tuple[float, float]:
    """Return lr at step t, and what is taken from 1 to give the factor that decays param."""
    schedule, exponent = switches["schedule"], switches["weight_decay_lr_exponent"]
    factor = 1.0 if schedule is None else hyper.rate_at("schedule", schedule, t)
    lr = hyper.rate_at("lr", switches["lr"], t) * factor
    decay = hyper.rate_at("weight_decay", switches["weight_decay"], t)
    mode = switches["weight_decay_mode"]
    if decay == 0 or mode == "step":  # the extension knows the step size, and decays by it
        return lr, 0.0
    if mode == "lr":
        return lr, decay * lr
    if mode == "schedule":
        return lr, decay * factor
    return lr, decay if exponent is None else decay * lr**exponent
