"""What the extension is told of a group's switches: once for all steps, and at each step."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, nan
from typing import Any

from adafactor_native import hyperparameters as hyper
from adafactor_native._runtime import _core


def rule_of(switches: Mapping[str, Any]) -> _core.Rule:
    """Return what the extension is told of a group once, for all steps until a switch changes.

    A field of Rule that is called like a switch is that switch, unless None has to become a number.
    """
    eps = nan if switches["eps"] is None else switches["eps"]  # nan: the machine epsilon of param
    mode = switches["eps_mode"]
    decays_by_step = switches["weight_decay_mode"] == "step"
    fields = {name: switches[name] for name in _core.Rule.fields if name in switches}
    fields.update(
        decay_rate=nan if switches["decay_rate"] is None else switches["decay_rate"],
        bias_correction=switches["bias_correction"] is True,
        debiased_beta2=switches["bias_correction"] == "beta2",
        eps_squares=eps if mode in ("both", "grad_squared") else 0.0,
        eps_means=eps if mode == "root" else 0.0,
        eps_root=eps if mode == "both" else 0.0,
        root_floor=eps if mode == "clamp" else 0.0,
        mean_floor=eps if mode == "clamp" else 0.0,
        clip_threshold=inf if switches["clip_threshold"] is None else switches["clip_threshold"],
        per_matrix=switches["rms_scope"] == "matrix",
        warmup=1e-6 if switches["warmup_init"] else 0.0,
        beta1=nan if switches["beta1"] is None else switches["beta1"],
        momentum_of_u=switches["momentum_of"] == "u",
        decay_by_step=switches["weight_decay"] if decays_by_step else 0.0,
        stochastic=switches["rounding"] == "stochastic",
        shared_t=switches["t_scope"] == "model",
    )
    return _core.Rule(**fields)


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
