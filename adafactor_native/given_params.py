"""Parameters and their copies, however they are given, as groups and by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adafactor_native.halves import Array, is_half
from adafactor_native.trees import as_held, flatten, is_branch, is_container, is_pairs, spread

_OF_A_GROUP = ("params", "match")  # one of them is in each


def read_groups(
    params: Any, copies: Any = None, may_be_empty: bool = False
) -> list[tuple[str, Mapping[str, Any]]]:
    """Return `params` as groups with their own hyper-parameters, and how messages show these."""
    must_be = "must be a mapping from names to arrays, a sequence of arrays or a list of groups"
    params = as_held(params)
    if not is_container(params):
        raise TypeError(f"params is a {type(params).__name__}, {must_be}")
    if not isinstance(params, Mapping) and _are_groups(params):
        if copies is not None:
            raise TypeError("copies must be None with groups, which can have 'copies' each")
        return [(f"params[{i}][{{!r}}]", group) for i, group in enumerate(params)]
    if not may_be_empty and not flatten(params, "params"):
        raise ValueError(f"params is empty, {must_be}, at least one")
    return [("{}", {"params": params, "copies": copies})]


def copies_by_name(
    shown: str, copies: Any, params: Mapping[str, Array], first: int
) -> dict[str, Array]:
    """Return the copies that there are by name, checked as far as the extension does not.

    Positions of a sequence begin at `first`, as those of its params.
    """
    if copies is None:
        return {}
    copies = _as_container(shown, copies)
    if isinstance(copies, Mapping) or is_pairs(copies) or any(map(is_branch, copies)):
        named = spread(flatten(copies, shown, first), params)
        unknown = next((name for name in named if name not in params), None)
        if unknown is not None:
            raise ValueError(f"{shown} has {unknown!r}, must have names of its params only")
    elif len(copies) != len(params):
        raise ValueError(
            f"{shown} has {len(copies)} arrays, must have {len(params)}: None where there is no copy"
        )
    else:
        named = dict(zip(params, copies))
    found = {name: copy for name, copy in named.items() if copy is not None}
    for name, copy in found.items():
        if not isinstance(copy, np.ndarray):
            raise TypeError(f"copies[{name!r}] is a {type(copy).__name__}, must be a numpy.ndarray")
        if not is_half(copy.dtype):
            raise TypeError(f"copies[{name!r}] has dtype {copy.dtype}, must be float16 or bfloat16")
        if params[name].dtype != np.float32:
            raise TypeError(
                f"params[{name!r}] has dtype {params[name].dtype}, must be float32 to have a copy"
            )
    return found


def named_arrays(shown: str, params: Any, first: int) -> dict[str, Array]:
    """Return a group's "params" by name; those of a sequence are positions, from `first` on."""
    named = flatten(_as_container(shown, params), "params", first)
    for name, param in named.items():
        require_text(f"params has the name {name!r}", name)
        if not isinstance(param, np.ndarray):
            raise TypeError(
                f"params[{name!r}] is a {type(param).__name__}, must be a numpy.ndarray"
                f"{_how_to_get_one(param)}"
            )
    return named


def _as_container(shown: str, given: Any) -> Any:
    """Return what holds arrays; an array stands for a sequence of itself."""
    held = as_held(given)
    if isinstance(held, np.ndarray):
        return [held]
    if not is_container(held):
        raise TypeError(
            f"{shown} is a {type(held).__name__}, must be a mapping from names to arrays, a "
            "sequence of arrays or an array"
        )
    return held


def require_text(shown: str, name: str) -> None:
    """Raise a ValueError for a str that no file and no UTF-8 holds."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{shown}, must be a str without lone surrogates") from None


def _are_groups(params: Sequence[Any]) -> bool:
    """Whether a sequence has groups, not parts of a tree, which may be mappings as well."""
    is_mapping = [isinstance(part, Mapping) for part in params]
    named = [m and any(key in part for key in _OF_A_GROUP) for m, part in zip(is_mapping, params)]
    if any(named) and not all(is_mapping):
        at = is_mapping.index(not is_mapping[0])
        raise TypeError(
            f"params[{at}] is a {type(params[at]).__name__}, must be like params[0]: all groups or "
            "all arrays"
        )
    return any(named) or (bool(params) and all(is_mapping) and not all(map(_is_layer, params)))


def _is_layer(part: Mapping[Any, Any]) -> bool:
    """Whether a mapping without "params" may be part of a tree: nothing in it is a number or text."""
    return len(part) > 0 and all(
        is_branch(value) or hasattr(value, "__array__") or hasattr(value, "__dlpack__")
        for value in part.values()
    )


def _how_to_get_one(param: Any) -> str:
    """Return what a message says of an array of another library."""
    if isinstance(param, (type, np.generic)):
        return ""
    if hasattr(param, "detach"):
        return " of its memory, as torch's p.detach().numpy()"
    if hasattr(param, "__array__") or hasattr(param, "__dlpack__"):
        return (
            ": numpy.array(p), which the model then has to use, for steps write into it and jax's "
            "arrays are read-only"
        )
    return ""
