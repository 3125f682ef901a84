"""The gradients of a step, however they are given, in the order of the tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, Union

import numpy as np
import numpy.typing as npt

from adafactor_native.param_groups import ParamGroup
from adafactor_native.trees import as_held, flatten, is_branch, is_pairs, spread


class HasArray(Protocol):
    """What ``numpy.asarray`` reads: tensors of torch on the CPU, arrays of jax."""

    def __array__(self) -> npt.NDArray[Any]: ...


class HasDLPack(Protocol):
    """What ``numpy.from_dlpack`` reads, without a copy."""

    def __dlpack__(self) -> Any: ...

    def __dlpack_device__(self) -> Any: ...


_ARRAYS = frozenset((np.ndarray, type(None)))

Gradient = Union[npt.NDArray[Any], "np.floating[Any]", HasArray, HasDLPack]


def in_order(
    grads: Any,
    groups: Sequence[ParamGroup],
    names: Sequence[str],
    may_lack: Collection[str] = (),
) -> Sequence[Any]:
    """Return the gradients in the order of `names`, those of all groups.

    Parameters
    ----------
    grads : mapping, list or tuple, or iterator
        As `Optimizer.step` takes them.
    may_lack : collection of str
        Names that may be missing in mappings: None stands for them.

    Raises
    ------
    TypeError, ValueError
        If they are of another kind or number, or a name is missing or unknown.
    """
    if isinstance(grads, Mapping):
        return _by_name(names, grads, "grads", may_lack)
    grads = as_held(grads)
    if not isinstance(grads, (list, tuple)):
        raise TypeError(
            f"grads is a {type(grads).__name__}, must be a mapping from names to arrays, a "
            "list or a tuple"
        )
    if len(grads) == len(names) and _ARRAYS.issuperset(map(type, grads)):
        return grads
    if is_pairs(grads):
        return _of_leaves(names, grads, "grads", may_lack)
    if any(map(is_branch, grads)):
        known = set(names)
        if any("/" in name and name in known for name in spread(flatten(grads, "grads"), names)):
            return _of_leaves(names, grads, "grads", may_lack)  # a tree, as `params` was
        if len(grads) == len(groups):
            return [
                grad
                for g, (group, part) in enumerate(zip(groups, grads))
                for grad in _of_group(group, part, f"grads[{g}]", may_lack)
            ]
    return _of_length(len(names), grads, "grads")


def _of_group(
    group: ParamGroup, grads: Any, shown: str, may_lack: Collection[str]
) -> Sequence[Any]:
    if grads is None:
        return [None] * len(group.tensors)
    if isinstance(grads, Mapping):
        return _by_name(group["names"], grads, shown, may_lack)
    if not isinstance(grads, (list, tuple)):
        grads = [grads]
    return _of_length(len(group.tensors), grads, shown)


def _by_name(
    names: Sequence[str], grads: Mapping[str, Any], shown: str, may_lack: Collection[str]
) -> list[npt.NDArray[Any] | None]:
    try:
        ordered = [grads[name] for name in names]
    except KeyError:
        return _of_leaves(names, grads, shown, may_lack)
    if len(grads) != len(names):
        unknown = next(name for name in grads if name not in names)
        raise ValueError(f"{shown} has {unknown!r}, must have names of params only")
    return ordered


def _of_leaves(
    names: Sequence[str], tree: Any, shown: str, may_lack: Collection[str]
) -> list[npt.NDArray[Any] | None]:
    """Return the leaves of a tree of gradients in the order of `names`."""
    leaves = spread(flatten(tree, shown), names)
    if isinstance(tree, Mapping):  # a list where an array belongs is for the extension to name
        lists = {name: tree[name] for name in names if name not in leaves and name in tree}
        if lists:
            leaves = {n: leaf for n, leaf in leaves.items() if n.split("/")[0] not in lists} | lists
    may_lack, known = set(may_lack).union(leaves), set(names)
    missing = next((name for name in names if name not in may_lack), None)
    unknown = next((name for name in leaves if name not in known), None)
    if missing is not None:
        but = "" if unknown is None else f", but {unknown!r}"
        raise ValueError(
            f"{shown} has no {missing!r}{but}, must have every name; None leaves a tensor out"
        )
    if unknown is not None:
        raise ValueError(f"{shown} has {unknown!r}, must have names of params only")
    return [leaves.get(name) for name in names]


def _of_length(n: int, grads: Sequence[Any], shown: str) -> Sequence[Any]:
    if len(grads) != n:
        raise ValueError(f"{shown} has {len(grads)} gradients, must have {n}")
    return grads
