"""The states of optax.adafactor: trees of named tuples, whose parts are trees like the parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np

from adafactor_native.convert.arrays import (
    Incoming,
    MakeArray,
    add_incoming,
    array_maker,
    count_of,
    exchanged,
    require_one_process,
    take_over,
)
from adafactor_native.optimizer import Optimizer
from adafactor_native.param_groups import Array, Tensor


def load_optax(opt: Optimizer, state: Any, separator: str = "/") -> None:
    """Continue a run of ``optax.adafactor``, or of any chain of optax with its parts.

    Parameters
    ----------
    opt : Optimizer
        That of the same parameters, with ``convention="optax"`` (or "big_vision", "t5x") and the
        run's hyper-parameters.
    state : pytree
        What ``init`` and ``update`` return there: anywhere in it a FactoredState and, with momentum,
        an EmaState, as named tuples or as dicts of their fields.
    separator : str
        What joins the keys of nested dicts and lists to our names: {"dense": {"kernel": ...}} is
        "dense/kernel", and the second of a list is "1".

    Raises
    ------
    TypeError, ValueError
        As by `load_torch`.
    """
    require_one_process(opt)
    if opt.convention not in _CONVENTIONS:
        *others, last = map(repr, _CONVENTIONS)
        raise ValueError(f"convention is {opt.convention!r}, must be {', '.join(others)} or {last}")
    factored = _children(_only(state, "state", _FACTORED))
    trees = {field: _leaves(factored[field], separator) for field in _STATISTICS}
    if _has_moments(opt, state, "state"):
        trees["ema"] = _leaves(_children(_only(state, "state", _EMA))["ema"], separator)
    for field in trees.keys() & {"v", "ema"}:
        _require_names(opt, trees[field], f"{field} of state")
    incoming: Incoming = []
    finite = opt.nonfinite != "propagate"
    for tensor in opt.tensors:
        for field, values in _as_there(tensor).items():
            theirs = trees[field].get(tensor.name)
            shown = f"{field}[{tensor.name!r}] of state"
            add_incoming(incoming, values, theirs, shown, _KINDS[field], finite)
    t = count_of("count of state", factored["count"])
    take_over(opt, incoming, t, [t] * len(opt.names))


def to_optax(
    opt: Optimizer, like: Any, array: MakeArray | None = None, separator: str = "/"
) -> Any:
    """Return a state of optax with our statistics.

    Parameters
    ----------
    opt : Optimizer
    like : pytree
        A state of theirs, such as ``init`` returns for the same parameters: structure, dtypes and
        all that is not ours are taken from it. It is not changed.
    array : callable or None
        Makes their arrays of ours: ``jax.numpy.asarray``.
    separator : str
        As for `load_optax`.

    Returns
    -------
    pytree
        With every ``count`` the number of steps taken.

    Raises
    ------
    ValueError
        If `like` is of other parameters, or factored over other axes.
    """
    require_one_process(opt)
    factored = _children(_only(like, "like", _FACTORED))
    _require_names(opt, _leaves(factored["v"], separator), "v of like")
    _has_moments(opt, like, "like")
    make = array_maker(array)
    own: dict[str, dict[str, Array]] = {field: {} for field in _FIELDS.values()}
    for tensor in opt.tensors:
        for field, values in _as_there(tensor).items():
            own[field][tensor.name] = values

    def rebuilt(node: Any) -> Any:
        parts = _children(node)
        is_state = (
            hasattr(node, "_fields")
            or parts.keys() == {"count"}  # of a schedule
            or parts.keys() >= _FACTORED
            or parts.keys() >= _EMA
        )
        for key, part in parts.items():
            if is_state and key == "count":
                parts[key] = make(np.array(opt.t, getattr(part, "dtype", np.int32)))
            elif is_state and key in own:
                parts[key] = filled(key, part, "")
            else:
                parts[key] = rebuilt(part)
        return _with_children(node, parts)

    def filled(field: str, tree: Any, path: str) -> Any:
        """Return statistics or moments as a tree like this; what is not kept here stays there."""
        parts = _children(tree)
        if parts:
            named = ((key, part, _joined(path, key, separator)) for key, part in parts.items())
            return _with_children(tree, {key: filled(field, part, to) for key, part, to in named})
        name = path or "0"
        values = own[field].get(name)
        if values is None:
            return tree
        if np.shape(tree) != values.shape:
            raise ValueError(
                f"{field}[{name!r}] of like has shape {np.shape(tree)}, must be {values.shape}"
            )
        return make(np.array(values, tree.dtype, order="C"))

    return rebuilt(like)


# The fields of FactoredState and EmaState, and where in them our arrays are
_STATISTICS = ("v_row", "v_col", "v")
_FACTORED = {"count", *_STATISTICS}
_EMA = {"count", "ema"}
_FIELDS = {"exp_row": "v_row", "exp_col": "v_col", "v": "v", "m": "ema"}
_KINDS = {field: kind for kind, field in _FIELDS.items()}

# Whose steps leave such a state
_CONVENTIONS = ("optax", "big_vision", "t5x")


def _children(node: Any) -> dict[Any, Any]:
    """Return a container's parts by key, name of field or position; a leaf has none."""
    if isinstance(node, Mapping):
        return dict(node)
    if hasattr(node, "_fields"):
        return dict(zip(node._fields, node))
    return dict(enumerate(node)) if isinstance(node, (list, tuple)) else {}


def _with_children(node: Any, parts: dict[Any, Any]) -> Any:
    if not parts:
        return node
    if isinstance(node, Mapping):
        make: Any = type(node)
        return make(parts)
    return node._replace(**parts) if hasattr(node, "_fields") else type(node)(parts.values())


def _found(node: Any, fields: AbstractSet[str]) -> Iterator[Any]:
    parts = _children(node)
    if fields <= parts.keys():
        yield node
    else:
        for part in parts.values():
            yield from _found(part, fields)


def _only(tree: Any, shown: str, fields: AbstractSet[str]) -> Any:
    found = list(_found(tree, fields))
    if len(found) != 1:
        raise ValueError(
            f"{shown} has {len(found)} parts with the fields {', '.join(sorted(fields))}, must have "
            "one"
        )
    return found[0]


def _has_moments(opt: Optimizer, tree: Any, shown: str) -> bool:
    """Whether there are first moments, here and in the tree."""
    here = any(tensor.m is not None for tensor in opt.tensors)
    there = any(True for _ in _found(tree, _EMA))
    if here != there:
        has, must = ("an", "none") if there else ("no", "one")
        raise ValueError(f"{shown} has {has} EmaState, must have {must}, as beta1 is here")
    return here


def _joined(path: str, key: Any, separator: str) -> str:
    return f"{path}{separator}{key}" if path else str(key)


def _leaves(tree: Any, separator: str, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, (Mapping, list, tuple)):
        return {path or "0": tree}
    return {
        name: leaf
        for key, part in _children(tree).items()
        for name, leaf in _leaves(part, separator, _joined(path, key, separator)).items()
    }


def _as_there(tensor: Tensor) -> dict[str, Array]:
    """Return views of a tensor's state by their fields: theirs leave all axes in their places."""
    views = {_FIELDS[kind]: array for kind, array in exchanged(tensor).items()}
    if tensor.axes is not None:
        row, col = tensor.axes
        views["v_row"] = np.moveaxis(views["v_row"], -1, row - (row > col))
        views["v_col"] = np.moveaxis(views["v_col"], -1, col - (col > row))
    return views


def _require_names(opt: Optimizer, leaves: Mapping[str, Any], shown: str) -> None:
    if leaves.keys() != set(opt.names):
        raise ValueError(
            f"{shown} has the names {', '.join(map(repr, leaves))}, must have "
            f"{', '.join(map(repr, opt.names))}"
        )
