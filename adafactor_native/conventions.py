"""The dialects of Adafactor by name: each library's arguments and defaults, and what it computes.

A convention's arguments are a TypedDict, which a type checker reads as the keyword arguments of
`Optimizer`, and its switches follow from them (see `adafactor_native.switches`). An argument that is
called like a switch and means the same is inherited; every other is annotated here with its default
and the switches it sets. What a library changes in the paper's equations, and what we change in
theirs, stands in the docstring.

What a callable gets is one rule for all: t, which is 1 at the first step, under the name of a switch
and in param_groups; and the library's own count, t - 1, under an argument of a library that counts
from zero (optax, keras, t5x and big_vision).

Annotations of this module are read at run time, by Python 3.9 too: none may need a later one.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Optional

import numpy.typing as npt

from adafactor_native import hyperparameters as hyper
from adafactor_native.convention import CONVENTIONS, Argument, Arguments, Convention, Shown
from adafactor_native.switches import Epsilon, LearningRate, Rate, Values, WeightDecay

__all__ = [
    "CONVENTIONS",
    "BigVisionArguments",
    "CountedFromZero",
    "HuggingFaceArguments",
    "KerasArguments",
    "NumpyArguments",
    "OptaxArguments",
    "PaperArguments",
    "T5xArguments",
    "TorchArguments",
]

EpsPair = tuple[Optional[float], float]


class CountedFromZero:
    """Calls a schedule with the number of steps behind it, t - 1, as JAX's libraries and Keras do."""

    def __init__(self, schedule: Callable[[int], float]) -> None:
        self.schedule = schedule

    def __call__(self, t: int) -> float:
        return self.schedule(t - 1)

    def __repr__(self) -> str:
        return f"CountedFromZero({self.schedule!r})"


def _counted_from_zero(shown: Shown, value: Any) -> Any:
    return CountedFromZero(value) if callable(value) else value


def _counted_or(default: float) -> Callable[[Shown, Any], Any]:
    return lambda shown, value: default if value is None else _counted_from_zero(shown, value)


def _pair(shown: Shown, value: Any) -> tuple[Any, Any]:
    try:
        first, second = value
    except (TypeError, ValueError):
        raise TypeError(f"{shown} is {value!r}, must be a pair: eps and eps_scale") from None
    return first, second


def _negated(shown: Shown, value: Any) -> float:
    return -hyper.non_negative(shown, value)


def _two_largest(shown: Shown, value: Any) -> str:
    return "two_largest" if hyper.boolean(shown, value) else "none"


def _or(default: float) -> Callable[[Shown, Any], Any]:
    return lambda shown, value: default if value is None else value


# What JAX's libraries have in common: no relative step, one t for all tensors.
_JAX = {"relative_step": False, "t_scope": "model", "factored_axes": "two_largest"}


class NumpyArguments(Arguments, LearningRate, Epsilon, WeightDecay, total=False):
    """The twenty lines of NumPy that this package began as; the defaults of `AdaFactor`.

    Before version 0.2 it was called "seed", as it still may be.

    Unlike the paper: beta2 is a constant (0.999) without bias correction, eps is added to sqrt(V) as
    well as to the squared gradient, RMS(param) has no floor, so that a param of zeros never moves,
    and the learning rate does not depend on t.
    """


class PaperArguments(Arguments, LearningRate, Epsilon, WeightDecay, total=False):
    """Shazeer & Stern 2018, "Adafactor", https://arxiv.org/abs/1804.04235, Algorithms 4, 5 and 6.

    ``beta2_t = 1 - t**-0.8``, ``lr_t = min(1e-2, 1/sqrt(t))``, the step is proportional to
    ``max(1e-3, RMS(param))``, RMS(u) is clipped at 1, eps = 1e-30 is added to the squared gradient.
    Matrices are factored; the paper says nothing of tensors of more axes, which here are not.
    """


class HuggingFaceArguments(Arguments, WeightDecay, total=False):
    """``transformers.Adafactor`` (5.23.0); the same rule as fairseq's and MLX's.

    Unlike the paper: any tensor of two or more axes is factored over its last two; ``relative_step``
    takes ``min(1e-2, 1/sqrt(t))``, with ``warmup_init`` ``min(1e-6 * t, 1/sqrt(t))``, and excludes
    an ``lr``; the first moment (``beta1``) is of the step, learning rate and all; weight decay is
    times the whole step size, RMS(param) included.

    As there, `lr` with `relative_step`, and `warmup_init` without it, are errors; so is no `lr`
    without `relative_step`, which there fails in the first step.

    Unlike theirs: state is float64 unless `state_dtype` says float32 (theirs is float32, and cast to
    param's dtype when loaded); the first moment is kept in param's dtype.
    """

    lr: Annotated[Optional[Rate], Argument(None, ("lr",), _or(1e-2))]
    eps: Annotated[EpsPair, Argument((1e-30, 1e-3), ("eps", "eps_scale"), _pair)]


def _check_huggingface(arguments: Mapping[str, Any]) -> Values:
    lr, relative_step = arguments["lr"], arguments["relative_step"]
    if lr is not None and relative_step:
        raise ValueError(f"lr is {lr!r}, must be None with relative_step=True")
    if lr is None and not relative_step:
        raise ValueError("lr is None, must be a number or a callable with relative_step=False")
    return {}


class TorchArguments(Arguments, LearningRate, WeightDecay, total=False):
    """``torch.optim.Adafactor`` (2.13.0). `foreach` is accepted and changes nothing.

    Unlike the paper: any tensor of two or more axes is factored over its last two; eps is not added
    but clamps: ``V = R C / max(mean R, eps)``, ``u = grad / max(sqrt(V), eps)``, so that it has two
    units at once, and ``eps[0]=None`` is the machine epsilon, 1.2e-7 for float32: gradients whose
    RMS is below its root, 3.5e-4, are scaled up to a different size. The step is always relative,
    ``min(lr, 1/sqrt(t))``, and always proportional to RMS(param); weight decay is times lr alone.

    Unlike theirs: the machine epsilon is that of each tensor's own dtype, and float32's for halves,
    which are read as float32 (theirs is that of the dtype of the group's first tensor); tensors without elements are stepped over (theirs fails); state is
    float64, or float32 by `state_dtype` (theirs is of the tensor's dtype).
    """

    beta2_decay: Annotated[float, Argument(-0.8, ("decay_rate",), hyper.non_positive)]
    eps: Annotated[EpsPair, Argument((None, 1e-3), ("eps", "eps_scale"), _pair)]
    d: Annotated[float, Argument(1.0, ("clip_threshold",), hyper.at_least_one)]
    foreach: Annotated[Optional[bool], Argument(None, (), hyper.boolean_or_none)]


class OptaxArguments(Arguments, LearningRate, Epsilon, WeightDecay, total=False):
    """``optax.adafactor`` (0.2.8). Callables of its own arguments get t - 1, its count.

    Unlike the paper: the two largest axes are factored, if both have at least
    `min_dim_size_to_factor`; `decay_rate` is the exponent without its sign; there is no relative
    step, and no learning rate is a learning rate of 1; `momentum` is of the step, learning rate and
    all; weight decay is times nothing else, neither the learning rate nor RMS(param). All tensors
    have one t.

    Unlike theirs: up to `decay_offset`, where theirs takes the power of a number below zero and
    gives nan, t counts as 1; beta2_t and the state are float64, the first moment of a float64 param
    too; `weight_decay_mask` goes by name.
    """

    learning_rate: Annotated[
        Optional[Rate],
        Argument(None, ("lr",), _counted_or(1.0)),
    ]
    decay_rate: Annotated[Optional[float], Argument(0.8, ("decay_rate",), _negated)]
    multiply_by_parameter_scale: Annotated[bool, Argument(True, ("scale_parameter",))]
    clipping_threshold: Annotated[Optional[float], Argument(1.0, ("clip_threshold",))]
    momentum: Annotated[Optional[float], Argument(None, ("beta1",))]
    dtype_momentum: Annotated[Optional[npt.DTypeLike], Argument(None, ("momentum_dtype",))]
    weight_decay_rate: Annotated[
        Optional[Rate],
        Argument(None, ("weight_decay",), _counted_or(0.0)),
    ]
    factored: Annotated[bool, Argument(True, ("factored_axes",), _two_largest)]


class KerasArguments(Arguments, LearningRate, Epsilon, total=False):
    """``keras.optimizers.Adafactor`` (3.15.1). Callables get t - 1, ``iterations``.

    Unlike the paper: any tensor of two or more axes is factored over its last two; weight decay is
    times the learning rate, and RMS(param) is that of the decayed param. All tensors have one t.

    Unlike theirs: ``relative_step=False`` is obeyed (theirs takes ``min(lr, 1/sqrt(t))`` all the
    same); no V of param's size is kept; the product of a dead row and a dead column does not
    underflow to 0/0.
    """

    learning_rate: Annotated[Rate, Argument(1e-3, ("lr",), _counted_from_zero)]
    beta_2_decay: Annotated[float, Argument(-0.8, ("decay_rate",), hyper.non_positive)]
    epsilon_1: Annotated[float, Argument(1e-30, ("eps",))]
    epsilon_2: Annotated[float, Argument(1e-3, ("eps_scale",))]
    weight_decay: Annotated[Optional[Rate], Argument(None, ("weight_decay",), _counted_or(0.0))]


class T5xArguments(Arguments, LearningRate, Epsilon, WeightDecay, total=False):
    """``t5x.adafactor.Adafactor`` (cc342d4). `learning_rate` must be set; callables get t - 1.

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

    learning_rate: Annotated[Rate, Argument(None, ("lr",), _counted_from_zero)]
    factored: Annotated[bool, Argument(True, ("factored_axes",), _two_largest)]
    multiply_by_parameter_scale: Annotated[bool, Argument(True, ("scale_parameter",))]
    decay_rate: Annotated[Optional[float], Argument(0.8, ("decay_rate",), _negated)]
    step_offset: Annotated[int, Argument(0, ("decay_offset",))]
    clipping_threshold: Annotated[Optional[float], Argument(1.0, ("clip_threshold",))]
    weight_decay_rate: Annotated[
        Optional[Rate], Argument(None, ("weight_decay",), _counted_or(0.0))
    ]
    epsilon1: Annotated[float, Argument(1e-30, ("eps",))]
    epsilon2: Annotated[float, Argument(1e-3, ("eps_scale",))]
    dtype_momentum: Annotated[Optional[npt.DTypeLike], Argument(None, ("momentum_dtype",))]
    weight_decay_rate_lr_exponent: Annotated[
        Optional[float], Argument(None, ("weight_decay_lr_exponent",))
    ]


def _decay_of_t5x(arguments: Mapping[str, Any]) -> Values:
    exponent, rate = (
        arguments[name] for name in ("weight_decay_rate_lr_exponent", "weight_decay_rate")
    )
    return {"weight_decay": 1.0} if exponent and not rate else {}


class BigVisionArguments(Arguments, LearningRate, Epsilon, WeightDecay, total=False):
    """big_vision's ``scale_by_adafactor`` and what it is chained with (0127fb6); Zhai et al. 2022.

    `lr` and `wd` are those of its configuration, `lr` must be set; callables given as `wd` or
    `schedule` get t - 1.

    Unlike the paper: ``beta2_t`` is at most `beta2_cap`; no update clipping, no RMS(param), no
    relative step; the two largest axes are factored, if both have at least
    `min_dim_size_to_factor`; the first moment is of u, before the learning rate; weight decay is
    times the schedule and not times lr. All tensors have one t.

    Unlike theirs: up to `decay_offset` t counts as 1, where theirs gives nan; beta2_t and the state
    are float64; the first moment is float32, or float64 for a float64 param, unless it is asked for
    with their default, ``dtype_momentum="bfloat16"``, which needs ml_dtypes.
    """

    wd: Annotated[Rate, Argument(0.0, ("weight_decay",), _counted_from_zero)]
    schedule: Annotated[
        Optional[Callable[[int], float]], Argument(None, ("schedule",), _counted_from_zero)
    ]
    decay_rate: Annotated[Optional[float], Argument(0.8, ("decay_rate",), _negated)]
    beta2_cap: Annotated[float, Argument(0.999, ("beta2",))]
    clipping_threshold: Annotated[Optional[float], Argument(None, ("clip_threshold",))]
    momentum: Annotated[Optional[float], Argument(0.9, ("beta1",))]
    dtype_momentum: Annotated[Optional[npt.DTypeLike], Argument(None, ("momentum_dtype",))]


for _convention in (
    Convention("paper", PaperArguments, {}),
    Convention(
        "numpy",
        NumpyArguments,
        {
            "relative_step": False,
            "eps_scale": 0.0,
            "beta2": 0.999,
            "decay_rate": None,
            "eps_mode": "both",
        },
    ),
    Convention(
        "huggingface",
        HuggingFaceArguments,
        {"factored_axes": "last_two", "weight_decay_mode": "step"},
        _check_huggingface,
    ),
    Convention("torch", TorchArguments, {"factored_axes": "last_two", "eps_mode": "clamp"}),
    Convention(
        "optax",
        OptaxArguments,
        {**_JAX, "min_dim_size_to_factor": 128, "weight_decay_mode": "alone"},
    ),
    Convention(
        "keras",
        KerasArguments,
        {"factored_axes": "last_two", "t_scope": "model", "scale_after_decay": True},
    ),
    Convention(
        "t5x",
        T5xArguments,
        {
            **_JAX,
            "min_dim_size_to_factor": 128,
            "rms_scope": "matrix",
            "weight_decay_mode": "alone",
        },
        _decay_of_t5x,
    ),
    Convention(
        "big_vision",
        BigVisionArguments,
        {
            **_JAX,
            "lr": None,
            "min_dim_size_to_factor": 32,
            "scale_parameter": False,
            "eps_scale": 0.0,
            "momentum_of": "u",
            "weight_decay_mode": "schedule",
        },
    ),
):
    CONVENTIONS[_convention.name] = _convention
