"""How a step over ranks is taken, and what of it must be the same on all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from adafactor_native._runtime import _core
from adafactor_native.rules import rule_of
from adafactor_native.torch.settings import Settings
from adafactor_native.torch.sharded_model import ShardedModel

if TYPE_CHECKING:
    from adafactor_native.torch.optimizer import NativeOptimizer


def plan_of(
    opt: NativeOptimizer,
    model: ShardedModel,
    every: Sequence[Settings],
    rates: Sequence[tuple[float, float]],
) -> _core.Plan:
    """Return how a step is taken, with these settings, lr and decays of the groups."""
    norm = opt.options.max_grad_norm
    return _core.Plan(
        rules=[_rule_for(every[place], dtype) for place, dtype in model.groups],
        lr=[rates[place][0] for place, _ in model.groups],
        decay=[rates[place][1] for place, _ in model.groups],
        nonfinite=_core.NonFinite[opt.options.nonfinite],
        all_or_none=True,
        max_grad_norm=math.inf if norm is None else norm,
        skip_above=math.inf,
        num_threads=opt._num_threads(),
        carry_param_rms=False,
        seed=opt.options.seed,
    )


def at_this_step(
    opt: NativeOptimizer, every: Sequence[Settings], rates: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Return what of the next step must be the same on all ranks."""
    options = opt.options
    settings: dict[str, Any] = {
        "nonfinite": options.nonfinite,
        "max_grad_norm": options.max_grad_norm,
        "seed": options.seed,
        "sums": options.sums,
        "state_dtype": options.state_dtype,
        "grad_scale": getattr(opt, "grad_scale", None),
    }
    for k, (one, rate) in enumerate(zip(every, rates)):
        settings[f"lr and decay of group {k}"] = rate
        settings |= {
            f"{name} of group {k}": value
            for name, value in one.switches.items()
            if not callable(value)
        }
    return settings


def _rule_for(settings: Settings, dtype: torch.dtype) -> _core.Rule:
    """Return a group's rule; an eps of None is the machine epsilon of the parameter's own dtype."""
    switches: Mapping[str, Any] = settings.switches
    if switches["eps"] is None and switches["masters"] is None and dtype.itemsize == 2:
        return rule_of({**switches, "eps": torch.finfo(dtype).eps})
    return rule_of(switches)
