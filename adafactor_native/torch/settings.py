"""What the values of a param group mean, in the arguments of the library that a class stands in for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from adafactor_native._runtime import _core
from adafactor_native.conventions import CONVENTIONS
from adafactor_native.rules import rule_of
from adafactor_native.torch.options import OF_GROUPS, NativeOptions
from adafactor_native.torch.state import Kept, StateNames


@dataclass(frozen=True)
class Dialect:
    """How a class asks for steps.

    Attributes
    ----------
    convention : str
        Of `adafactor_native.conventions`.
    lr : str
        The convention's argument that ``group["lr"]`` is.
    arguments : tuple of str
        All others that groups have, called as the convention calls them.
    names : StateNames
    has_others : bool
        Tensors that are not plain can be stepped as well, by `others`.
    """

    convention: str
    lr: str
    arguments: tuple[str, ...]
    names: StateNames
    has_others: bool = False


@dataclass(frozen=True)
class Settings:
    """What the values of a group mean, for as long as they stay what they are."""

    native: _core.TorchGroup
    switches: dict[str, Any]  # "lr" is set before they are used
    kept: Kept

    @property
    def is_stochastic(self) -> bool:
        return bool(self.switches["rounding"] == "stochastic")


_PLAIN = (float, int, bool, str, type(None))


def constant(value: Any) -> Any:
    """Return a group's value as one that does not change when somebody writes to it."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, (tuple, list)):
        return tuple(map(constant, value))
    if hasattr(value, "item") and not callable(value):  # a tensor or a NumPy scalar
        return value.item()
    return value


def key_of(dialect: Dialect, options: NativeOptions, group: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return all that `settings_of` looks at: the arguments, then what is ours."""
    values = [constant(group[name]) for name in dialect.arguments]
    own = [group[name] if name in group else getattr(options, name) for name in OF_GROUPS]
    return (*values, *own, options.state_dtype)


def settings_of(dialect: Dialect, key: tuple[Any, ...], placeholder_lr: Any) -> Settings:
    """Return what a key of `key_of` means. Raises TypeError or ValueError if it means nothing."""
    given = dict(zip(dialect.arguments, key))
    *own_values, state_dtype = key[len(given) :]
    own = NativeOptions(**dict(zip(OF_GROUPS, own_values)))
    switches = CONVENTIONS[dialect.convention].switches(
        (
            "{}",
            {
                **given,
                dialect.lr: placeholder_lr,
                "rounding": own.rounding,
                "masters": own.masters,
            },
        )
    )
    kept = Kept(
        factored_axes=switches["factored_axes"],
        min_dim_size_to_factor=switches["min_dim_size_to_factor"],
        has_moment=switches["beta1"] is not None,
        momentum_dtype=own.momentum_dtype,
        masters=switches["masters"],
        state_dtype=state_dtype,
    )
    native = _core.TorchGroup(
        rule=rule_of(switches),
        factored_axes=kept.factored_axes,
        min_dim_size_to_factor=kept.min_dim_size_to_factor,
        masters=kept.masters,
        has_moment=kept.has_moment,
        has_float32_state=kept.state_dtype == torch.float32,
    )
    return Settings(native, switches, kept)


def rate_of(dialect: Dialect, lr: Any) -> Any:
    """Return a learning rate as the switches have it: a float, or a callable of t."""
    if is_schedule(lr):
        own = CONVENTIONS[dialect.convention].own.get(dialect.lr)
        return lr if own is None else own.meaning("lr", lr)
    rate = float(lr)
    if not math.isfinite(rate):
        raise ValueError(f"lr is {rate}, must be finite")
    return rate


def is_schedule(lr: Any) -> bool:
    return callable(lr) and not isinstance(lr, torch.Tensor)
