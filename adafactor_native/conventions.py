"""The dialects of Adafactor by name: each library's arguments and defaults, and what it computes.

A convention is a function. Its arguments are those that the library documents, with its defaults; its
value is the switches (see `adafactor_native.switches`) with which a step is that library's. What all
of them change in the paper's equations, and what we change in theirs, stands in its docstring.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from adafactor_native import hyperparameters as hyper
from adafactor_native.switches import DEFAULTS, SWITCHES, Switches, check_switches


@dataclass(frozen=True)
class Convention:
    """A library's way of asking for a step.

    Attributes
    ----------
    name : str
    arguments : mapping of str to object
        Its own arguments and their defaults.
    sets : mapping of str to tuple of str
        The switches that each of these arguments sets.
    translate : callable
        Takes them, returns all switches.
    """

    name: str
    arguments: Mapping[str, Any]
    sets: Mapping[str, tuple[str, ...]]
    translate: Callable[..., Switches]

    def switches(self, *levels: tuple[str, Mapping[str, Any]]) -> Switches:
        """Return the switches that somebody asks for, all checked.

        Parameters
        ----------
        *levels : pairs of str and mapping
            How a message shows an argument, with ``{}`` for its name; and arguments: the library's
            own, or switches by name, which count more. A later level counts more than an earlier.

        Raises
        ------
        TypeError
            If an argument is unknown, sets what another one of its level sets, or is of a wrong
            type.
        ValueError
            If an argument is out of range or contradicts another.
        """
        own = dict(self.arguments)
        instead: Switches = {}
        shown: dict[str, str] = {}
        for where, given in (("{}", own), *levels):
            setters = self._setters(where, given)
            for switch, setter in setters.items():
                several = len(self.sets.get(setter, ())) > 1
                place = f"[{self.sets[setter].index(switch)}]" if several else ""
                shown[switch] = where.format(setter) + place
                instead.pop(switch, None)
            for name, value in given.items():
                (own if name in own else instead)[name] = value
        return check_switches({**self.translate(**own), **instead}, shown)

    def _setters(self, where: str, given: Mapping[str, Any]) -> dict[str, str]:
        """Return which of the given arguments sets each switch that any of them sets."""
        setters: dict[str, str] = {}
        for name in given:
            if name not in self.arguments and name not in SWITCHES:
                known = ", ".join(dict.fromkeys((*self.arguments, *SWITCHES)))
                raise TypeError(
                    f"{where.format(name)} is unknown to convention {self.name!r}, must be one of "
                    f"{known}"
                )
            for switch in self.sets.get(name, (name,)):
                if switch in setters:
                    raise TypeError(
                        f"{switch} is given twice, as {where.format(setters[switch])} and as "
                        f"{where.format(name)}, must be given once"
                    )
                setters[switch] = name
        return setters


CONVENTIONS: dict[str, Convention] = {}


def _convention(**sets: tuple[str, ...]) -> Callable[[Callable[..., Switches]], Any]:
    """Register a convention; `sets` has the arguments that are not called like the switch they set."""

    def register(translate: Callable[..., Switches]) -> Callable[..., Switches]:
        parameters = inspect.signature(translate).parameters.values()
        CONVENTIONS[translate.__name__] = Convention(
            name=translate.__name__,
            arguments={p.name: p.default for p in parameters},
            sets={p.name: sets.get(p.name, (p.name,)) for p in parameters},
            translate=translate,
        )
        return translate

    return register


def convention_of(value: Any) -> Convention:
    if not isinstance(value, str) or value not in CONVENTIONS:
        known = ", ".join(map(repr, CONVENTIONS))
        raise ValueError(f"convention is {value!r}, must be one of {known}")
    return CONVENTIONS[value]


class CountedFromZero:
    """Calls a schedule with the number of steps behind it, t - 1, as JAX's libraries and Keras do."""

    def __init__(self, schedule: Callable[[int], float]) -> None:
        self.schedule = schedule

    def __call__(self, t: int) -> float:
        return self.schedule(t - 1)

    def __repr__(self) -> str:
        return f"CountedFromZero({self.schedule!r})"


def _counted_from_zero(value: Any) -> Any:
    return CountedFromZero(value) if callable(value) else value


def _pair(name: str, value: Any) -> tuple[Any, Any]:
    try:
        first, second = value
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}, must be a pair: eps and eps_scale") from None
    return first, second


def _negated(name: str, value: Any) -> float:
    return -hyper.non_negative(name, value)


@_convention()
def seed() -> Switches:
    """The class this package began as; the defaults of `AdaFactor`.

    Unlike the paper: beta2 is a constant (0.999) without bias correction, eps is added to sqrt(V) as
    well as to the squared gradient, RMS(param) has no floor, so that a param of zeros never moves,
    and the learning rate does not depend on t.
    """
    return DEFAULTS


@_convention()
def paper() -> Switches:
    """Shazeer & Stern 2018, "Adafactor", https://arxiv.org/abs/1804.04235, Algorithms 4, 5 and 6.

    ``beta2_t = 1 - t**-0.8``, ``lr_t = min(1e-2, 1/sqrt(t))``, the step is proportional to
    ``max(1e-3, RMS(param))``, RMS(u) is clipped at 1, eps = 1e-30 is added to the squared gradient.
    Matrices are factored; the paper says nothing of tensors of more axes, which here are not.
    """
    return {
        **DEFAULTS,
        "beta2": 1.0,
        "decay_rate": -0.8,
        "eps_mode": "grad_squared",
        "eps_scale": 1e-3,
        "relative_step": True,
    }


@_convention(eps=("eps", "eps_scale"))
def huggingface(
    lr: Any = None,
    eps: Any = (1e-30, 1e-3),
    clip_threshold: Any = 1.0,
    decay_rate: Any = -0.8,
    beta1: Any = None,
    weight_decay: Any = 0.0,
    scale_parameter: Any = True,
    relative_step: Any = True,
    warmup_init: Any = False,
) -> Switches:
    """``transformers.Adafactor`` (5.23.0); the same rule as fairseq's and MLX's.

    Unlike the paper: any tensor of two or more axes is factored over its last two; ``relative_step``
    takes ``min(1e-2, 1/sqrt(t))``, with ``warmup_init`` ``min(1e-6 * t, 1/sqrt(t))``, and excludes
    an ``lr``; the first moment (``beta1``) is of the step, learning rate and all; weight decay is
    times the whole step size, RMS(param) included.

    As there, `lr` with `relative_step`, and `warmup_init` without it, are errors; so is no `lr`
    without `relative_step`, which there fails in the first step.

    Unlike theirs: state is float64 (theirs is float32, and cast to param's dtype when loaded); the
    first moment is kept in param's dtype.
    """
    if lr is not None and relative_step:
        raise ValueError(f"lr is {lr!r}, must be None with relative_step=True")
    if lr is None and not relative_step:
        raise ValueError("lr is None, must be a number or a callable with relative_step=False")
    eps_squares, eps_scale = _pair("eps", eps)
    return {
        **paper(),
        "factored_axes": "last_two",
        "lr": 1e-2 if lr is None else lr,
        "eps": eps_squares,
        "eps_scale": eps_scale,
        "clip_threshold": clip_threshold,
        "decay_rate": decay_rate,
        "beta1": beta1,
        "weight_decay": weight_decay,
        "weight_decay_mode": "step",
        "scale_parameter": scale_parameter,
        "relative_step": relative_step,
        "warmup_init": warmup_init,
    }


@_convention(
    beta2_decay=("decay_rate",), eps=("eps", "eps_scale"), d=("clip_threshold",), foreach=()
)
def torch(
    lr: Any = 1e-2,
    beta2_decay: Any = -0.8,
    eps: Any = (None, 1e-3),
    d: Any = 1.0,
    weight_decay: Any = 0.0,
    foreach: Any = None,
    maximize: Any = False,
) -> Switches:
    """``torch.optim.Adafactor`` (2.13.0). `foreach` is accepted and changes nothing.

    Unlike the paper: any tensor of two or more axes is factored over its last two; eps is not added
    but clamps: ``V = R C / max(mean R, eps)``, ``u = grad / max(sqrt(V), eps)``, so that it has two
    units at once, and ``eps[0]=None`` is the machine epsilon, 1.2e-7 for float32: gradients whose
    RMS is below its root, 3.5e-4, are scaled up to a different size. The step is always relative,
    ``min(lr, 1/sqrt(t))``, and always proportional to RMS(param); weight decay is times lr alone.

    Unlike theirs: the machine epsilon is that of each tensor's own dtype (theirs is that of the
    first tensor of the group); tensors without elements are stepped over (theirs fails); state is
    float64.
    """
    if foreach is not None:
        hyper.boolean("foreach", foreach)
    eps_clamp, eps_scale = _pair("eps", eps)
    return {
        **paper(),
        "factored_axes": "last_two",
        "lr": lr,
        "decay_rate": hyper.non_positive("beta2_decay", beta2_decay),
        "eps": eps_clamp,
        "eps_scale": eps_scale,
        "eps_mode": "clamp",
        "clip_threshold": hyper.at_least_one("d", d),
        "weight_decay": weight_decay,
        "maximize": maximize,
    }


@_convention(
    learning_rate=("lr",),
    multiply_by_parameter_scale=("scale_parameter",),
    clipping_threshold=("clip_threshold",),
    momentum=("beta1",),
    dtype_momentum=("momentum_dtype",),
    weight_decay_rate=("weight_decay",),
    factored=("factored_axes",),
)
def optax(
    learning_rate: Any = None,
    min_dim_size_to_factor: Any = 128,
    decay_rate: Any = 0.8,
    decay_offset: Any = 0,
    multiply_by_parameter_scale: Any = True,
    clipping_threshold: Any = 1.0,
    momentum: Any = None,
    dtype_momentum: Any = None,
    weight_decay_rate: Any = None,
    eps: Any = 1e-30,
    factored: Any = True,
    weight_decay_mask: Any = None,
) -> Switches:
    """``optax.adafactor`` (0.2.8). Callables are called with t - 1, optax's count.

    Unlike the paper: the two largest axes are factored, if both have at least
    `min_dim_size_to_factor`; `decay_rate` is the exponent without its sign; there is no relative
    step, and no learning rate is a learning rate of 1; `momentum` is of the step, learning rate and
    all; weight decay is times nothing else, neither the learning rate nor RMS(param). All tensors
    have one t.

    Unlike theirs: up to `decay_offset`, where theirs takes the power of a number below zero and
    gives nan, t counts as 1; beta2_t and the state are float64, the first moment of a float64 param
    too; `weight_decay_mask` goes by name.
    """
    return {
        **paper(),
        "factored_axes": "two_largest" if hyper.boolean("factored", factored) else "none",
        "lr": 1.0 if learning_rate is None else _counted_from_zero(learning_rate),
        "relative_step": False,
        "min_dim_size_to_factor": min_dim_size_to_factor,
        "decay_rate": _negated("decay_rate", decay_rate),
        "decay_offset": decay_offset,
        "t_scope": "model",
        "scale_parameter": multiply_by_parameter_scale,
        "clip_threshold": clipping_threshold,
        "beta1": momentum,
        "momentum_dtype": dtype_momentum,
        "weight_decay": (
            0.0 if weight_decay_rate is None else _counted_from_zero(weight_decay_rate)
        ),
        "weight_decay_mode": "alone",
        "weight_decay_mask": weight_decay_mask,
        "eps": eps,
    }


@_convention(
    learning_rate=("lr",),
    beta_2_decay=("decay_rate",),
    epsilon_1=("eps",),
    epsilon_2=("eps_scale",),
)
def keras(
    learning_rate: Any = 1e-3,
    beta_2_decay: Any = -0.8,
    epsilon_1: Any = 1e-30,
    epsilon_2: Any = 1e-3,
    clip_threshold: Any = 1.0,
    relative_step: Any = True,
    weight_decay: Any = None,
) -> Switches:
    """``keras.optimizers.Adafactor`` (3.15.1). A callable is called with t - 1, ``iterations``.

    Unlike the paper: any tensor of two or more axes is factored over its last two; weight decay is
    times the learning rate, and RMS(param) is that of the decayed param. All tensors have one t.

    Unlike theirs: ``relative_step=False`` is obeyed (theirs takes ``min(lr, 1/sqrt(t))`` all the
    same); no V of param's size is kept; the product of a dead row and a dead column does not
    underflow to 0/0.
    """
    return {
        **paper(),
        "factored_axes": "last_two",
        "lr": _counted_from_zero(learning_rate),
        "decay_rate": hyper.non_positive("beta_2_decay", beta_2_decay),
        "t_scope": "model",
        "eps": epsilon_1,
        "eps_scale": epsilon_2,
        "clip_threshold": clip_threshold,
        "relative_step": relative_step,
        "weight_decay": 0.0 if weight_decay is None else weight_decay,
        "scale_after_decay": True,
    }


@_convention(
    learning_rate=("lr",),
    factored=("factored_axes",),
    multiply_by_parameter_scale=("scale_parameter",),
    step_offset=("decay_offset",),
    clipping_threshold=("clip_threshold",),
    weight_decay_rate=("weight_decay",),
    epsilon1=("eps",),
    epsilon2=("eps_scale",),
    weight_decay_rate_lr_exponent=("weight_decay_lr_exponent",),
    dtype_momentum=("momentum_dtype",),
)
def t5x(
    learning_rate: Any = None,
    factored: Any = True,
    multiply_by_parameter_scale: Any = True,
    beta1: Any = None,
    decay_rate: Any = 0.8,
    step_offset: Any = 0,
    clipping_threshold: Any = 1.0,
    weight_decay_rate: Any = None,
    min_dim_size_to_factor: Any = 128,
    epsilon1: Any = 1e-30,
    epsilon2: Any = 1e-3,
    dtype_momentum: Any = None,
    weight_decay_rate_lr_exponent: Any = None,
) -> Switches:
    """``t5x.adafactor.Adafactor`` (cc342d4). `learning_rate` must be set; a callable gets t - 1.

    Unlike the paper: the two largest axes are factored, if both have at least
    `min_dim_size_to_factor`, the others are batch axes, and RMS(u) and RMS(param) are those of each
    matrix on its own; `decay_rate` is the exponent without its sign; there is no relative step;
    `beta1` is of the step, learning rate and all; weight decay is times nothing else, or with
    `weight_decay_rate_lr_exponent` times that power of the learning rate (and 1 if it is not given).
    All tensors have one t.

    Unlike theirs: tensors of more than two axes need no table of their axes (``factored_axes``
    names others than the largest); up to `step_offset` t counts as 1, where theirs gives nan; state
    is float64, the first moment of a float64 param too.
    """
    return {
        **paper(),
        "factored_axes": "two_largest" if hyper.boolean("factored", factored) else "none",
        "rms_scope": "matrix",
        "lr": _counted_from_zero(learning_rate),
        "relative_step": False,
        "scale_parameter": multiply_by_parameter_scale,
        "beta1": beta1,
        "decay_rate": _negated("decay_rate", decay_rate),
        "decay_offset": step_offset,
        "t_scope": "model",
        "clip_threshold": clipping_threshold,
        "weight_decay": weight_decay_rate or (1.0 if weight_decay_rate_lr_exponent else 0.0),
        "weight_decay_mode": "alone",
        "weight_decay_lr_exponent": weight_decay_rate_lr_exponent,
        "min_dim_size_to_factor": min_dim_size_to_factor,
        "eps": epsilon1,
        "eps_scale": epsilon2,
        "momentum_dtype": dtype_momentum,
    }


@_convention(
    wd=("weight_decay",),
    beta2_cap=("beta2",),
    clipping_threshold=("clip_threshold",),
    momentum=("beta1",),
    dtype_momentum=("momentum_dtype",),
)
def big_vision(
    lr: Any = None,
    wd: Any = 0.0,
    schedule: Any = None,
    min_dim_size_to_factor: Any = 32,
    decay_rate: Any = 0.8,
    decay_offset: Any = 0,
    beta2_cap: Any = 0.999,
    clipping_threshold: Any = None,
    momentum: Any = 0.9,
    dtype_momentum: Any = None,
    eps: Any = 1e-30,
) -> Switches:
    """big_vision's ``scale_by_adafactor`` and what it is chained with (0127fb6); Zhai et al. 2022.

    `lr` and `wd` are those of its configuration, `lr` must be set; `schedule` is called with t - 1.

    Unlike the paper: ``beta2_t`` is at most `beta2_cap`; no update clipping, no RMS(param), no
    relative step; the two largest axes are factored, if both have at least
    `min_dim_size_to_factor`; the first moment is of u, before the learning rate; weight decay is
    times the schedule and not times lr. All tensors have one t.

    Unlike theirs: up to `decay_offset` t counts as 1, where theirs gives nan; beta2_t and the state
    are float64; the first moment is float32, or float64 for a float64 param, unless it is asked for
    with their default, ``dtype_momentum="bfloat16"``, which needs ml_dtypes.
    """
    return {
        **paper(),
        "factored_axes": "two_largest",
        "lr": lr,
        "schedule": _counted_from_zero(schedule),
        "relative_step": False,
        "scale_parameter": False,
        "eps_scale": 0.0,
        "weight_decay": wd,
        "weight_decay_mode": "schedule",
        "min_dim_size_to_factor": min_dim_size_to_factor,
        "decay_rate": _negated("decay_rate", decay_rate),
        "decay_offset": decay_offset,
        "beta2": beta2_cap,
        "t_scope": "model",
        "clip_threshold": clipping_threshold,
        "beta1": momentum,
        "momentum_of": "u",
        "momentum_dtype": dtype_momentum,
        "eps": eps,
    }
