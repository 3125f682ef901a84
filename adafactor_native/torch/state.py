"""The state of a parameter: what it is called, how it begins, and how a replaced one is taken over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from adafactor_native._runtime import _core
from adafactor_native.factoring import Axes, axes_of

HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class StateNames:
    """The keys of a library's state.

    Attributes
    ----------
    step, row, col, full, moment : str
        The count of steps; running means of the squared gradient over rows, over columns, or of each
        element; the first moment.
    rms_param : str or None
        RMS(param) before the last step, a float.
    keeps_axes : bool
        Row and column means keep the axis that they were taken over, with length 1.
    counts_with_tensors : bool
        The count is a tensor of no axes, or an int.
    """

    step: str
    row: str
    col: str
    full: str
    moment: str = "exp_avg"
    master: str = "master"
    low: str = "low"
    rms_param: str | None = None
    keeps_axes: bool = True
    counts_with_tensors: bool = True

    def native(self) -> _core.TorchNames:
        return _core.TorchNames(**{field.name: getattr(self, field.name) for field in fields(self)})


TORCH_NAMES = StateNames("step", "row_var", "col_var", "variance")
HUGGINGFACE_NAMES = StateNames(
    "step",
    "exp_avg_sq_row",
    "exp_avg_sq_col",
    "exp_avg_sq",
    rms_param="RMS",
    keeps_axes=False,
    counts_with_tensors=False,
)


@dataclass(frozen=True)
class Kept:
    """What a group's tensors keep: the settled part of its switches, with dtypes."""

    factored_axes: str
    min_dim_size_to_factor: int
    has_moment: bool
    momentum_dtype: torch.dtype | None
    masters: str | None
    state_dtype: torch.dtype


@dataclass(frozen=True)
class Place:
    """An array of the state as it has to be."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    is_contiguous: bool = True


def places(names: StateNames, kept: Kept, shown: str, param: torch.Tensor) -> dict[str, Place]:
    """Return the arrays that a parameter's state has, by key, without the count."""
    shape = tuple(param.shape)
    wide = kept.state_dtype
    axes = axes_of(shown, shape, kept.factored_axes, kept.min_dim_size_to_factor)
    if axes is None:
        found = {names.full: Place(shape, wide)}
    else:
        rows, cols = (
            tuple(1 if axis is None else shape[axis] for axis in each)
            for each in axes_of_means(names, axes, len(shape))
        )
        found = {names.row: Place(rows, wide), names.col: Place(cols, wide)}
    if kept.has_moment:
        moments = kept.momentum_dtype or torch.float32
        if param.dtype == torch.float64:
            moments = torch.float64
        found[names.moment] = Place(shape, moments, False)
    if kept.masters == "float32" and param.dtype in HALVES:
        found[names.master] = Place(shape, torch.float32, False)
    if kept.masters == "split" and param.dtype == torch.bfloat16:
        found[names.low] = Place(shape, torch.uint16, False)
    return found


def axes_of_means(
    names: StateNames, axes: Axes, ndim: int
) -> tuple[list[int | None], list[int | None]]:
    """Return which axes of a parameter its row means have, and its column means; None: of length 1."""
    batch: list[int | None] = [axis for axis in range(ndim) if axis not in axes]
    gone: list[int | None] = [None] if names.keeps_axes else []
    return [*batch, axes.row, *gone], [*batch, *gone, axes.col]


def new_count(names: StateNames) -> Any:
    if not names.counts_with_tensors:
        return 0
    wide = torch.get_default_dtype() == torch.float64
    return torch.zeros((), dtype=torch.float64 if wide else torch.float32)


def begin(
    state: dict[str, Any], names: StateNames, kept: Kept, shown: str, param: torch.Tensor
) -> None:
    """Fill the empty state of a parameter that has taken no step."""
    made = {names.step: new_count(names)}
    for key, place in places(names, kept, shown, param).items():
        made[key] = _made(names, key, place, param)
    if names.rms_param is not None:
        made[names.rms_param] = 0
    state.update(made)


def _made(names: StateNames, key: str, place: Place, param: torch.Tensor) -> torch.Tensor:
    if key == names.master:
        return param.detach().to(torch.float32)
    if key == names.low:  # lies as the parameter does, so that halves are found at one distance
        low = torch.empty_strided(param.shape, param.stride(), dtype=torch.int16)
        return low.zero_().view(torch.uint16)
    if place.is_contiguous:
        return torch.zeros(place.shape, dtype=place.dtype)
    return torch.zeros_like(param, dtype=place.dtype, memory_format=torch.preserve_format)


def taken_over(
    state: Mapping[str, Any], names: StateNames, kept: Kept, shown: str, param: torch.Tensor
) -> dict[str, Any]:
    """Return what has to replace values of a state so that a step can use it.

    Parameters
    ----------
    state : mapping
        Not empty: what somebody has loaded or put there.
    shown : str
        What a message calls the parameter.

    Raises
    ------
    TypeError, ValueError
        If something is missing, or is no state of this parameter.
    """
    wanted = places(names, kept, shown, param)
    replaced = scalars_taken_over(state, names, wanted, kept, shown, param.dtype)
    for key, place in wanted.items():
        if key not in state:
            replaced[key] = _made(names, key, place, param)
            continue
        value = state[key]
        if not isinstance(value, torch.Tensor):
            raise TypeError(
                f"{key!r} of {shown} is a {type(value).__name__}, must be a tensor of shape "
                f"{place.shape}"
            )
        if tuple(value.shape) != place.shape:
            raise ValueError(
                f"{key!r} of {shown} has shape {tuple(value.shape)}, must be {place.shape}"
            )
        if not fits(value, place, key == names.low, param):
            replaced[key] = fitted(value, names, key, place, param)
    return replaced


def scalars_taken_over(
    state: Mapping[str, Any],
    names: StateNames,
    wanted: Mapping[str, Place],
    kept: Kept,
    shown: str,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Return what has to replace numbers of a state that has the arrays of a parameter of this dtype.

    Raises
    ------
    TypeError, ValueError
        If it has not, or has arrays that would be lost, or its count is none.
    """
    replaced: dict[str, Any] = {}
    needed = [names.step, *(key for key in wanted if key in (names.row, names.col, names.full))]
    missing = [key for key in needed if key not in state]
    if missing:
        raise ValueError(
            f"the state of {shown} has {sorted(map(str, state))}, must have {missing} as well: it is "
            "of another optimizer, or of a parameter of another shape"
        )
    for key, allowed in ((names.master, "float32"), (names.low, "split")):
        if key in state and key not in wanted and dtype in HALVES:
            raise ValueError(
                f"the state of {shown} has {key!r}, which only an optimizer with masters={allowed!r} "
                f"continues; masters is {kept.masters!r}"
            )
    count = count_of(state[names.step], f"{names.step!r} of {shown}")
    if not _is_count(state[names.step], names):
        replaced[names.step] = as_count(count, names)
    if names.rms_param is not None and names.rms_param not in state:
        replaced[names.rms_param] = 0
    return replaced


def fits(value: torch.Tensor, place: Place, is_low: bool, param: torch.Tensor) -> bool:
    """Whether a step can use a tensor of the right shape as it is."""
    return (
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and value.dtype == place.dtype
        and (not place.is_contiguous or value.is_contiguous())
        and (not is_low or value.stride() == param.stride())
    )


def fitted(
    value: torch.Tensor, names: StateNames, key: str, place: Place, param: torch.Tensor
) -> torch.Tensor:
    """Return a new tensor of the same numbers that a step can use."""
    value = value.detach()
    if key == names.low:
        if value.dtype not in (torch.uint16, torch.int16):
            raise TypeError(f"{key!r} has dtype {value.dtype}, must be torch.uint16")
        made = _made(names, key, place, param)
        made.view(torch.int16).copy_(value.view(torch.int16))
        return made
    if not value.is_floating_point():
        raise TypeError(f"{key!r} has dtype {value.dtype}, must be {place.dtype}")
    made = value.to(device="cpu", dtype=place.dtype, copy=True)
    require_no_overflow(repr(key), made, value)
    return made.contiguous() if place.is_contiguous else made


def require_no_overflow(shown: str, made: torch.Tensor, given: torch.Tensor) -> None:
    """Raise a ValueError if numbers became infinite where they were copied to another dtype."""
    if not torch.equal(made.isfinite(), given.cpu().isfinite()):
        raise ValueError(f"{shown} has numbers beyond {made.dtype}, must have none")


def count_of(value: Any, shown: str) -> int:
    """Return a count of steps, given as a tensor or a number."""
    try:
        if isinstance(value, torch.Tensor) and value.numel() != 1:
            raise ValueError
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{shown} is {value!r}, must be a count of steps") from None
    if not (number >= 0 and number < 2**53 and number == math.floor(number)):
        raise ValueError(f"{shown} is {number}, must be an int >= 0 and < 2**53")
    return int(number)


def as_count(count: int, names: StateNames) -> Any:
    if not names.counts_with_tensors:
        return count
    return new_count(names).fill_(count)


def _is_count(value: Any, names: StateNames) -> bool:
    if not names.counts_with_tensors:
        return type(value) is int
    return (
        type(value) is torch.Tensor
        and value.numel() == 1
        and value.device.type == "cpu"
        and value.dtype in (torch.float32, torch.float64)
    )
