"""What an optimizer takes beside its library's arguments: kept in an attribute, not in the groups."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping
from typing import Any

import torch

from adafactor_native import hyperparameters as hyper
from adafactor_native.suggestions import closest
from adafactor_native.switches import SWITCHES


def _dtype(*allowed: torch.dtype | None) -> Callable[[str, Any], torch.dtype | None]:
    shown = " or ".join(str(one) for one in allowed)

    def check(name: str, value: Any) -> torch.dtype | None:
        dtype = getattr(torch, value, value) if isinstance(value, str) else value
        if dtype not in allowed:
            raise ValueError(f"{name} is {value!r}, must be {shown}")
        return dtype

    return check


CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "nonfinite": hyper.nonfinite_policy,
    "rounding": SWITCHES["rounding"].check,
    "masters": SWITCHES["masters"].check,
    "momentum_dtype": _dtype(None, torch.float32, torch.bfloat16),
    "num_threads": hyper.threads_or_none,
    "state_dtype": _dtype(torch.float64, torch.float32),
    "max_grad_norm": hyper.positive_or_none,
    "seed": hyper.count,
    "sums": hyper.one_of("fast", "exact"),
}

DEFAULTS: dict[str, Any] = {
    "nonfinite": "propagate",
    "rounding": "nearest",
    "masters": None,
    "momentum_dtype": None,
    "num_threads": None,
    "state_dtype": torch.float64,
    "max_grad_norm": None,
    "seed": 0,
    "sums": "fast",
}


@functools.cache
def saves_uint16() -> bool:
    """Whether ``torch.save`` takes lower halves of masters, as in later versions than 2.5."""
    try:
        torch.save(torch.zeros(1, dtype=torch.uint16), io.BytesIO())
    except KeyError:
        return False
    return True


def _unknown(name: str) -> str:
    guess = closest(name, CHECKS)
    return f"{name!r} is no option, " + (
        f"did you mean {guess!r}?" if guess else f"must be one of {list(CHECKS)}"
    )


# What a group may have of its own, if the user puts it there.
OF_GROUPS = ("rounding", "masters", "momentum_dtype")


def require_own_options(group: Mapping[str, Any]) -> None:
    """Raise a ValueError if a group has an option that holds for all of them."""
    for name in CHECKS:
        if name in group and name not in OF_GROUPS:
            raise ValueError(
                f"{name} is {group[name]!r} in a group, must be an argument of the optimizer: it holds for "
                "all groups"
            )


class NativeOptions:
    """The options of an optimizer, each an attribute that is checked when it is set.

    Attributes
    ----------
    nonfinite : {"propagate", "raise", "skip"}
        What becomes of a step with a nan or an infinity: it is taken, as torch takes it; it raises a
        FloatingPointError that names parameter and index, and changes nothing; it is left out.
    rounding : {"nearest", "stochastic"}
        Of half-precision parameters and first moments.
    masters : {None, "float32", "split"}
        What is kept beside a half-precision parameter so that no step is lost: a float32 of which it
        is the rounded copy (state ``"master"``), or the lower half of one whose upper half a bfloat16
        parameter is (``"low"``).
    momentum_dtype : torch.dtype or None
        Of first moments: torch.float32, torch.bfloat16 or None, which is float32. Those of float64
        parameters are float64.
    num_threads : int or None
        The most threads of a step. None: the smaller of ``torch.get_num_threads()`` and
        ``adafactor_native.get_num_threads()``.
    state_dtype : torch.dtype
        Of the running means, torch.float64 or torch.float32, which is rounded once a step.
    max_grad_norm : float or None
        The norm of all gradients that a step scales them down to, as ``clip_grad_norm_`` does.
    seed : int
        Of stochastic rounding. The random bits are a function of it, of the tensor's ``state["step"]``
        and of its name, if the optimizer was given names, or else of its position.
    sums : {"fast", "exact"}
        How sums over the elements of a parameter are added up. "exact": as integers, so that
        parameters, state and `grad_norm` have the same bits however the parameters are cut, on any number
        of ranks, one process with plain tensors included, and as ``adafactor_native.Optimizer`` with
        ``sums="exact"`` has them. It takes more time, and more exchanges between ranks. All parameters
        must be in pieces then, or none; they step together, so that `fuse_backward`,
        `measure_in_backward`, `step_param` and compiled steps are refused, and `step_async` steps at
        once. "fast": as ``opt.step()`` of one process adds them up, which parameters in pieces have the
        bits of where matrices are cut by rows at multiples of 64 and vectors at multiples of 1024
        elements, and agree with to rounding elsewhere.
    """

    nonfinite: str
    rounding: str
    masters: str | None
    momentum_dtype: torch.dtype | None
    num_threads: int | None
    state_dtype: torch.dtype
    max_grad_norm: float | None
    seed: int
    sums: str = "fast"  # which options have that were pickled before there was another

    def __init__(self, **options: Any) -> None:
        for name, default in DEFAULTS.items():
            setattr(self, name, options.pop(name, default))
        if options:
            raise TypeError(_unknown(next(iter(options))))

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in CHECKS:
            raise AttributeError(_unknown(name))
        checked = CHECKS[name](name, value)
        if name == "masters" and checked == "split" and not saves_uint16():
            raise ValueError(
                f"masters is 'split', must be None or 'float32' with torch {torch.__version__}, which cannot "
                "save the lower halves, of uint16: a later one can"
            )
        together = {**self.__dict__, name: checked}
        if together.get("rounding") == "stochastic" and together.get("masters") == "split":
            raise ValueError(
                "rounding is 'stochastic', must be 'nearest' with masters 'split': the two halves are "
                "the whole number"
            )
        object.__setattr__(self, name, checked)

    def __repr__(self) -> str:
        return f"NativeOptions({', '.join(f'{name}={getattr(self, name)!r}' for name in CHECKS)})"
