"""A state that was saved beside another model or set-up, made into one that fits: by choice only."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from adafactor_native.halves import Array, portable
from adafactor_native.param_groups import KINDS, Tensor
from adafactor_native.suggestions import closest
from adafactor_native.switches import SETTLED, SWITCHES

if TYPE_CHECKING:
    from adafactor_native.model import Model

Rename = Union[Mapping[str, str], Callable[[str], str]]
Description = dict[str, Any]

_OF_THE_OPTIMIZER = ("max_grad_norm", "skip_above", "seed")
_KEEPABLE = (
    *(name for name in SWITCHES if name not in SETTLED),
    *("weight_decay_mask", "groups", *_OF_THE_OPTIMIZER),
)


@dataclass(frozen=True)
class LoadReport:
    """What ``load_state_dict(state, strict=False)`` did with each tensor, by the names here.

    Attributes
    ----------
    loaded : tuple of str
        Tensors that have the state's values now.
    missing : tuple of str
        Tensors of which the state has nothing; they are as they were.
    unexpected : tuple of str
        Tensors of the state that this optimizer does not have.
    mismatched : dict of str to str
        Tensors that are of another kind in the state, and how; they are as they were.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: dict[str, str] = field(default_factory=dict)


def checked_keep(keep: Any) -> frozenset[str]:
    if isinstance(keep, str) or not isinstance(keep, Collection):
        raise TypeError(f"keep is a {type(keep).__name__}, must be a collection of names")
    for name in keep:
        if name not in _KEEPABLE:
            guess = closest(name, _KEEPABLE)
            instead = f"did you mean {guess!r}?" if guess else f"must be of {', '.join(_KEEPABLE)}"
            raise ValueError(f"keep has {name!r}, {instead}")
    return frozenset(keep)


def renamed(
    arrays: Mapping[str, Any], descriptions: Sequence[Description], rename: Rename | None
) -> tuple[dict[str, Any], list[Description]]:
    """Return arrays and descriptions by the names that tensors have here."""
    if rename is None:
        return dict(arrays), list(descriptions)
    if isinstance(rename, Mapping):
        names = {description["name"] for description in descriptions}
        unknown = next((old for old in rename if old not in names), None)
        if unknown is not None:
            raise ValueError(f"rename has {unknown!r}, must have names of the state only")
    elif not callable(rename):
        raise TypeError(f"rename is a {type(rename).__name__}, must be a mapping or a callable")
    named = []
    seen: dict[str, str] = {}
    moved = dict(arrays)
    for description in descriptions:
        old = description["name"]
        new = rename.get(old, old) if isinstance(rename, Mapping) else rename(old)
        if not isinstance(new, str):
            raise TypeError(f"rename of {old!r} is a {type(new).__name__}, must be a str")
        if new in seen:
            raise ValueError(f"rename makes {new!r} of {old!r} and of {seen[new]!r}")
        seen[new] = old
        named.append({**description, "name": new})
        for kind in ("param", *KINDS):
            moved.pop(f"{kind}/{old}", None)
    for new, old in seen.items():
        for kind in ("param", *KINDS):
            if f"{kind}/{old}" in arrays:
                moved[f"{kind}/{new}"] = arrays[f"{kind}/{old}"]
    return moved, named


def keeping(
    opt: Model, header: dict[str, Any], keep: frozenset[str], written: Sequence[Any]
) -> None:
    """Put our own values into a header, `written` as a header has them, where they are to stay."""
    for name in keep.intersection(_OF_THE_OPTIMIZER):
        header[name] = getattr(opt, name)
    if "groups" in keep:
        header["groups"] = list(written)
    for given, own in zip(header["groups"], written):
        if isinstance(given, dict):
            given.update({name: own[name] for name in keep if name in own})


def matching(
    opt: Model,
    arrays: dict[str, Any],
    header: dict[str, Any],
    own: Mapping[str, Description],
) -> LoadReport:
    """Make a state one of exactly our tensors: ours stay as they are where the state has none like it.

    `arrays` and `header` are changed: what is unexpected goes, what is missing comes.
    """
    saved = {description["name"]: description for description in header["tensors"]}
    counts = dict(zip(saved, arrays["t"].tolist()))
    unexpected = tuple(name for name in saved if name not in own)
    missing = tuple(name for name in own if name not in saved)
    mismatched = {
        name: f"{what} was {saved[name].get(what)!r}, is {value!r} here"
        for name in own
        if name in saved
        for what, value in reversed(own[name].items())
        if saved[name].get(what) != value
    }
    for tensor in opt.tensors:
        if tensor.name in saved and tensor.name not in mismatched:
            for kind, array in tensor.state.items():
                given, like = arrays.get(f"{kind}/{tensor.name}"), portable(array)
                if isinstance(given, np.ndarray) and given.dtype != like.dtype:
                    mismatched[tensor.name] = f"{kind} was {given.dtype}, is {like.dtype} here"
    left = {*missing, *mismatched}
    loaded = tuple(name for name in own if name not in left)
    if not loaded:
        why = next(iter(mismatched.items()), None)
        instead = f"; {why[1]} for {why[0]!r}" if why else ""
        raise ValueError(
            f"state has {', '.join(map(repr, list(saved)[:5])) or 'no tensors'}, none of which is "
            f"like one of ours, {', '.join(map(repr, list(own)[:5]))}{instead}: nothing would be "
            "loaded; rename= changes names"
        )
    ours = dict(zip(opt.names, opt.counts.tolist()))
    for name in {*unexpected, *left}:
        for kind in ("param", *KINDS):
            arrays.pop(f"{kind}/{name}", None)
    for tensor in opt.tensors:
        if tensor.name in left:
            counts[tensor.name] = min(ours[tensor.name], header["t"])
            state = {**({"param": tensor.param} if header["params"] else {}), **tensor.state}
            arrays.update({f"{kind}/{tensor.name}": portable(a) for kind, a in state.items()})
    header["tensors"] = list(own.values())
    arrays["t"] = np.array([counts[name] for name in own], np.int64)
    return LoadReport(loaded, missing, unexpected, mismatched)


def convert_storage(
    tensor: Tensor, description: Description, arrays: dict[str, Any], params: bool
) -> None:
    """Change how a tensor's state is kept to how ours is; `description` and `arrays` are changed.

    Statistics and first moments change their dtype. A first moment that is new begins at zero. A
    master that is new is the param, or what split halves are together.
    """
    name = tensor.name
    there = {kind: arrays.pop(f"{kind}/{name}") for kind in KINDS if f"{kind}/{name}" in arrays}
    param = arrays.get(f"param/{name}") if params else portable(tensor.param)
    if not isinstance(param, np.ndarray) or not _can_convert(tensor, param, there):
        arrays.update({f"{kind}/{name}": array for kind, array in there.items()})
        return  # the checks that follow say what is wrong
    converted: dict[str, Array] = {}
    for kind, own in tensor.state.items():
        if kind in ("master", "low"):
            continue
        if kind in there:
            converted[kind] = _as_dtype(there[kind], own.dtype)
        elif kind == "m":
            converted[kind] = np.zeros_like(portable(own))
    if tensor.master is not None:
        converted["master"] = there.get("master", _whole(param, there.get("low")))
    if tensor.low is not None:
        if "master" in there and params:
            bits = np.array(there["master"], np.float32).view(np.uint32)
            converted["low"] = bits.astype(np.uint16)
            bits += np.uint32(0x8000)  # of a tie the split param is the neighbour away from zero
            bits >>= np.uint32(16)
            arrays[f"param/{name}"] = bits.astype(np.uint16)
        else:
            converted["low"] = there.get("low", np.zeros(tensor.low.shape, np.uint16))
    arrays.update({f"{kind}/{name}": array for kind, array in converted.items()})
    description["state"] = [kind for kind in tensor.state if kind in converted]
    description["state_dtype"] = tensor.state_dtype.name


def _can_convert(tensor: Tensor, param: Array, there: Mapping[str, Any]) -> bool:
    return (
        param.dtype == portable(tensor.param).dtype
        and all(
            isinstance(array, np.ndarray) and array.dtype in (np.float32, np.float64, np.uint16)
            for array in there.values()
        )
        and all(
            there[kind].shape == tensor.param.shape and there[kind].dtype == dtype
            for kind, dtype in (("master", np.float32), ("low", np.uint16))
            if kind in there
        )
        and param.shape == tensor.param.shape
    )


def _as_dtype(array: Array, dtype: np.dtype[Any]) -> Array:
    """Return an array of floats in another dtype, bfloat16 as its bits on both sides."""
    values = _upper_halves(array) if array.dtype == np.uint16 else array
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return portable(values.astype(dtype))


def _upper_halves(array: Array) -> Array:
    return _shifted_up(array).view(np.float32)


def _whole(param: Array, low: Array | None) -> Array:
    """Return the float32 of a param, a bfloat16 as its bits, and of the signed lower half of it."""
    if param.dtype != np.uint16:
        return param.astype(np.float32)
    bits = _shifted_up(param)
    if low is not None:
        bits |= low
        bits -= _shifted_up(low >= 0x8000)
    return bits.view(np.float32)


def _shifted_up(halves: Array) -> Array:
    """Return the bits of uint32 that have these as their upper halves.

    In place: of an array without axes an operator makes a scalar, which NumPy 1 widens to int64
    where the other side is an int of Python's.
    """
    bits = np.array(halves, np.uint32)
    bits <<= np.uint32(16)
    return bits
