"""The switches a step is made of: each defined once, with its type, check, default and meaning.

The classes here say so twice over: to a type checker, which keyword arguments there are and of what
types, and at run time, by their annotations, what each may be. `SWITCHES` has them all by name.
"""

import contextlib
import textwrap
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Optional, TypedDict, Union, get_type_hints

import numpy as np
import numpy.typing as npt

from adafactor_native import hyperparameters as hyper
from adafactor_native.factoring import check_factored_axes
from adafactor_native.halves import bfloat16
from adafactor_native.trees import flatten, is_branch

Values = dict[str, Any]  # of all switches, by name

# No annotation of this module may be a string that Python 3.9 cannot evaluate: they are read.
Rate = Union[float, Callable[[int], float]]
Mask = Union[Callable[[str], bool], Mapping[str, bool], Collection[str]]


@dataclass(frozen=True)
class Switch:
    """What a switch may be.

    Attributes
    ----------
    check : callable
        Takes what a message calls it and a value; returns the value as it is kept, or raises.
    default : object
        The paper's, which is also that of an `Optimizer` whose convention says nothing else.
    meaning : str
        A line for the table of `Optimizer`.
    settled : bool
        Whether it decides which arrays a tensor keeps or which tensors decay, and so cannot be
        changed once a group is added.
    """

    check: Callable[[str, Any], Any]
    default: Any
    meaning: str
    settled: bool = False


def _dtype_or_none(name: str, value: Any) -> Optional[np.dtype[Any]]:
    if value is None:
        return None
    if value == "bfloat16":
        return bfloat16(f"{name} is 'bfloat16'")
    with contextlib.suppress(TypeError):
        dtype: np.dtype[Any] = np.dtype(value)
        if dtype in (np.float32, np.float64) or dtype.name == "bfloat16":
            return dtype
    raise TypeError(f"{name} is {value!r}, must be bfloat16, float32, float64 or None")


def state_dtype(name: str, value: Any) -> np.dtype[Any]:
    """Return the dtype that running means are kept in, or raise a TypeError."""
    with contextlib.suppress(TypeError):
        dtype: np.dtype[Any] = np.dtype(value)
        if value is not None and dtype in (np.float32, np.float64):
            return dtype
    raise TypeError(f"{name} is {value!r}, must be 'float64' or 'float32'")


def _masters(name: str, value: Any) -> Optional[str]:
    if isinstance(value, (bool, np.bool_)):
        instead = repr(current_value("masters", bool(value)))
        raise TypeError(
            f"{name} is {value}, must be {instead}, as that is called since version 0.2; the values "
            "are None, 'float32' and 'split'"
        )
    if value is not None and (not isinstance(value, str) or value not in ("float32", "split")):
        raise ValueError(f"{name} is {value!r}, must be None, 'float32' or 'split'")
    return value


def _bias_correction(name: str, value: Any) -> Union[bool, str]:
    if isinstance(value, str):
        if value != "beta2":
            raise ValueError(f"{name} is {value!r}, must be a bool or 'beta2'")
        return value
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is a {type(value).__name__}, must be a bool or 'beta2'")
    return bool(value)


def _eps_mode(name: str, value: Any) -> str:
    return _check_eps_mode(name, current_value("eps_mode", value))


_check_eps_mode = hyper.one_of("both", "grad_squared", "clamp", "root")


def _mask_or_none(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return flatten(value, name) if any(map(is_branch, value.values())) else value
    if value is None or callable(value):
        return value
    if isinstance(value, str) or not isinstance(value, Collection):
        raise TypeError(
            f"{name} is a {type(value).__name__}, must be a callable or a mapping from names to "
            "bools, a collection of names, or None"
        )
    return frozenset(value)


class LearningRate(TypedDict, total=False):
    lr: Annotated[
        Rate, Switch(hyper.rate, 1e-2, "number >= 0, or a callable of t (1 at first; see Notes)")
    ]


class StepSwitches(TypedDict, total=False):
    schedule: Annotated[
        Optional[Callable[[int], float]],
        Switch(hyper.callable_or_none, None, "callable of t: multiplies lr"),
    ]
    relative_step: Annotated[bool, Switch(hyper.boolean, True, "lr_t = min(lr, 1/sqrt(t)) ...")]
    warmup_init: Annotated[
        bool, Switch(hyper.boolean, False, "... or min(1e-6 * t, 1/sqrt(t)), with relative_step")
    ]
    scale_parameter: Annotated[
        bool, Switch(hyper.boolean, True, "step proportional to max(eps_scale, RMS(param))")
    ]
    eps_scale: Annotated[
        float,
        Switch(hyper.non_negative, 1e-3, "number >= 0; with 0 a tensor of zeros never moves"),
    ]
    bias_correction: Annotated[
        Union[bool, Literal["beta2"]],
        Switch(
            _bias_correction,
            False,
            "of a constant beta2; True: lr times sqrt(1 - beta2**t) / (1 - beta2**t), which is no "
            'Adam\'s; "beta2": beta2_t = beta2 * (1 - beta2**(t-1)) / (1 - beta2**t), which is',
        ),
    ]
    maximize: Annotated[bool, Switch(hyper.boolean, False, "step uphill")]
    beta2: Annotated[
        float,
        Switch(hyper.fraction, 1.0, "in [0, 1]: beta2_t, or with decay_rate its upper limit"),
    ]
    decay_rate: Annotated[
        Optional[float],
        Switch(
            hyper.non_positive_or_none,
            -0.8,
            "<= 0: beta2_t = 1 - max(1, t - decay_offset)**decay_rate; None: beta2_t is beta2",
        ),
    ]
    decay_offset: Annotated[int, Switch(hyper.count, 0, "int >= 0")]
    t_scope: Annotated[
        Literal["tensor", "model"],
        Switch(
            hyper.one_of("tensor", "model"),
            "tensor",
            'of whose steps t is the count: or the "model"\'s; a tensor without a gradient takes '
            "none",
        ),
    ]


class Epsilon(TypedDict, total=False):
    eps: Annotated[
        Optional[float],
        Switch(
            hyper.non_negative_or_none,
            1e-30,
            "number >= 0, or None: the machine epsilon of param's dtype, of halves float32's",
        ),
    ]


class MomentSwitches(TypedDict, total=False):
    eps_mode: Annotated[
        Literal["both", "grad_squared", "clamp", "root", "seed"],
        Switch(
            _eps_mode,
            "grad_squared",
            'eps is added to g**2; "both": to g**2 and to sqrt(V); "clamp": V = R C / max(eps, '
            'mean R), u = g / max(eps, sqrt(V)); "root": added to exp_row, exp_col, v when used',
        ),
    ]
    factored_axes: Annotated[
        Union[Literal["matrix", "last_two", "two_largest", "none"], tuple[int, int]],
        Switch(
            check_factored_axes,
            "matrix",
            'those of tensors of two; "last_two"; "two_largest"; "none"; or (row axis, column '
            "axis)",
            settled=True,
        ),
    ]
    min_dim_size_to_factor: Annotated[
        int, Switch(hyper.count, 0, "both axes must be as long", settled=True)
    ]
    clip_threshold: Annotated[
        Optional[float], Switch(hyper.positive_or_none, 1.0, "number > 0, or None")
    ]
    rms_scope: Annotated[
        Literal["tensor", "matrix"],
        Switch(
            hyper.one_of("tensor", "matrix"),
            "tensor",
            'RMS(u), RMS(param) over the tensor, or over each "matrix"',
        ),
    ]
    beta1: Annotated[
        Optional[float],
        Switch(hyper.below_one_or_none, None, "in [0, 1): keep a first moment m ..."),
    ]
    momentum_of: Annotated[
        Literal["step", "u"],
        Switch(hyper.one_of("step", "u"), "step", '... of the step, or of "u", clipped'),
    ]
    momentum_dtype: Annotated[
        Optional[npt.DTypeLike],
        Switch(
            _dtype_or_none,
            None,
            'of m: "float32" or "bfloat16", None: float32; a param of float64 has an m of float64',
            settled=True,
        ),
    ]

    state_dtype: Annotated[
        npt.DTypeLike,
        Switch(
            state_dtype,
            np.dtype(np.float64),
            'of exp_row, exp_col and v: or "float32", half the bytes, rounded once in a step',
            settled=True,
        ),
    ]


class WeightDecay(TypedDict, total=False):
    weight_decay: Annotated[
        Rate, Switch(hyper.rate, 0.0, "number >= 0, or a callable of t; decay is it times ...")
    ]


class DecaySwitches(TypedDict, total=False):
    weight_decay_mode: Annotated[
        Literal["lr", "step", "alone", "schedule"],
        Switch(
            hyper.one_of("lr", "step", "alone", "schedule"),
            "lr",
            '... lr; "step": lr_t * max(eps_scale, RMS(param)); "alone": 1; "schedule": '
            "schedule(t)",
        ),
    ]
    weight_decay_mask: Annotated[
        Optional[Mask],
        Switch(
            _mask_or_none,
            None,
            "what decays: callable name -> bool, mapping or tree, collection of names; None: all",
            settled=True,
        ),
    ]
    weight_decay_lr_exponent: Annotated[
        Optional[float],
        Switch(hyper.finite_or_none, None, 'k: decay = weight_decay * lr**k, in mode "alone"'),
    ]
    scale_after_decay: Annotated[
        bool, Switch(hyper.boolean, False, "RMS(param) is that of the decayed param")
    ]
    rounding: Annotated[
        Literal["nearest", "stochastic"],
        Switch(
            hyper.one_of("nearest", "stochastic"),
            "nearest",
            'of half-precision params, copies and first moments: or "stochastic", up or down so '
            "that the mean is right",
        ),
    ]
    masters: Annotated[
        Optional[Literal["float32", "split"]],
        Switch(
            _masters,
            None,
            '"float32": keep a float32 of each half-precision param, which is it, rounded; '
            '"split": keep the lower 16 bits of one, of which the bfloat16 param is the upper '
            "ones, nearest, ties away from zero",
            settled=True,
        ),
    ]


class Switches(
    LearningRate, StepSwitches, Epsilon, MomentSwitches, WeightDecay, DecaySwitches, total=False
):
    """All switches, by the names that param_groups have whatever the convention."""


def annotations_of(arguments: type, kind: type) -> dict[str, Any]:
    """Return what a TypedDict's annotations have of this kind, by name."""
    return {
        name: one
        for name, annotation in get_type_hints(arguments, include_extras=True).items()
        for one in getattr(annotation, "__metadata__", ())
        if isinstance(one, kind)
    }


SWITCHES: dict[str, Switch] = annotations_of(Switches, Switch)
PAPER: Values = {name: switch.default for name, switch in SWITCHES.items()}
SETTLED = tuple(name for name, switch in SWITCHES.items() if switch.settled)

# What values were called before version 0.2
_FORMER: dict[str, dict[Any, Any]] = {
    "eps_mode": {"seed": "both"},
    "masters": {False: None, True: "float32"},
}


def current_value(name: str, value: Any) -> Any:
    """Return what a value of an older version is called now."""
    former = _FORMER.get(name, {})
    return former[value] if isinstance(value, (str, bool)) and value in former else value


def table(indent: str) -> str:
    """Return all switches as a table in a docstring: name, default, meaning."""
    names = max(map(len, SWITCHES))
    defaults = max(len(_shown(switch.default)) for switch in SWITCHES.values())
    width = 98 - len(indent) - names - defaults - 2
    rule = f"{'=' * names} {'=' * defaults} {'=' * width}"
    lines = [rule]
    for name, switch in SWITCHES.items():
        for i, part in enumerate(textwrap.wrap(switch.meaning, width)):
            first, second = (name, _shown(switch.default)) if i == 0 else ("", "")
            lines.append(f"{first:{names}} {second:{defaults}} {part}")
    return textwrap.indent("\n".join([*lines, rule]), indent)


def _shown(default: Any) -> str:
    return f'"{default}"' if isinstance(default, (str, np.dtype)) else repr(default)


def check_switches(switches: Mapping[str, Any], shown: Mapping[str, str]) -> Values:
    """Return all switches checked, one by one and together; `shown` is what messages call them."""

    def name(switch: str) -> str:
        return shown.get(switch, switch)

    checked = {
        switch: known.check(name(switch), switches[switch]) for switch, known in SWITCHES.items()
    }
    if checked["warmup_init"] and not checked["relative_step"]:
        raise ValueError(f"{name('warmup_init')} is True, must be False without relative_step")
    if checked["bias_correction"] and checked["decay_rate"] is not None:
        raise ValueError(
            f"{name('bias_correction')} is {checked['bias_correction']!r}, must be False with a "
            "decay_rate"
        )
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
