"""Tensors that change in the middle of a run: other arrays, more or fewer lines, a new start, gone."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adafactor_native._runtime import _core
from adafactor_native.factoring import Axes, axes_of
from adafactor_native.following import rounded
from adafactor_native.given_arrays import as_array
from adafactor_native.halves import Array, low_halves
from adafactor_native.param_groups import ParamGroup, Tensor, new_tensor
from adafactor_native.suggestions import no_such_name
from adafactor_native.taking_over import all_at_once, fill, require_sound

if TYPE_CHECKING:
    from adafactor_native.model import Model


class Lines(NamedTuple):
    """Which lines of an axis stay, and where: old line ``kept[i]`` becomes line ``to[i]`` of `n`."""

    axis: int
    kept: Array
    to: Array
    n: int


def replace_param(opt: Model, name: str, array: Any, copy: Any) -> None:
    """Put another array of the same shape in a param's place; see `Optimizer.replace`."""
    tensor, _ = _find(opt, name)
    _require_like(tensor, array)
    if array.shape != tensor.param.shape:
        raise ValueError(
            f"array has shape {array.shape}, must be {tensor.param.shape} as params[{name!r}]; "
            "opt.resize(name, array, axis) takes more or fewer lines of one axis"
        )
    new = replace(tensor, copy=_copy_of(tensor, copy, must=False), **_halves(tensor, array, None))
    new_copy = None if new.copy is None else rounded(new.param, new.copy.dtype)
    _take(opt, new, None, new_copy)


def resize(opt: Model, name: str, array: Any, axis: Any, copy: Any) -> None:
    """Put an array with more or fewer lines in a param's place; see `Optimizer.resize`."""
    tensor, group = _find(opt, name)
    _require_like(tensor, array)
    old = tensor.param.shape
    at = _axis(tensor, axis)
    if array.ndim != len(old) or array.shape[:at] + array.shape[at + 1 :] != (
        old[:at] + old[at + 1 :]
    ):
        raise ValueError(
            f"array has shape {array.shape}, must be the {old} of params[{name!r}] but for axis {at}"
        )
    new_copy_array = _copy_of(tensor, copy, must=array.shape != old)
    both = np.arange(min(old[at], array.shape[at]))
    count = None
    if tensor.param.size == 0 or array.size == 0:  # there is nothing to take means of
        new, count = new_tensor(name, array, group.switches), 0
        new = replace(new, decays=tensor.decays, copy=new_copy_array)
    else:
        lines = Lines(at, both, both, array.shape[at])
        switches = group.switches
        axes = axes_of(
            name, array.shape, switches["factored_axes"], switches["min_dim_size_to_factor"]
        )
        new = replace(
            tensor,
            axes=axes,
            copy=new_copy_array,
            m=_moment(tensor, array, lines),
            **_statistics(tensor, axes, lines),
            **_halves(tensor, array, lines),
        )
    _take(opt, new, count, None if new.copy is None else rounded(array, new.copy.dtype))


def remove(opt: Model, name: str) -> None:
    """Take a tensor out of the model and its group; see `Optimizer.remove`."""
    _find(opt, name)
    if len(opt.names) == 1:
        raise ValueError(f"params[{name!r}] is the only tensor, must be one of several")
    _swap(opt, name, None, None, None)


def reset(opt: Model, name: str, rows: Any, axis: Any) -> None:
    """Start a tensor or some of its lines anew; see `Optimizer.reset`."""
    tensor, group = _find(opt, name)
    param = np.asarray(tensor.param)
    fresh = None
    if rows is not None:
        at = _axis(tensor, axis)
        fresh = _chosen(rows, param.shape[at], f"axis {at} of params[{name!r}]")
        if not fresh.any():
            return
    rounded_param = None if tensor.copy is None else rounded(param, tensor.copy.dtype)
    if fresh is None or fresh.all():
        new = new_tensor(name, tensor.param, group.switches, tensor.copy)
        _take(opt, replace(new, decays=tensor.decays), 0, rounded_param)
        return
    stays = np.flatnonzero(~fresh)
    lines = Lines(at, stays, stays, param.shape[at])
    new = replace(
        tensor,
        m=_moment(tensor, tensor.param, lines),
        **_statistics(tensor, tensor.axes, lines),
        **_halves(tensor, tensor.param, lines),
    )
    if tensor.copy is not None and rounded_param is not None:
        index = _index(at, stays)
        rounded_param[index] = np.asarray(tensor.copy)[index]
    _take(opt, new, None, rounded_param)


def _find(opt: Model, name: Any) -> tuple[Tensor, ParamGroup]:
    """Return a tensor by name and its group, while no gradients of it as it is wait for a step."""
    opt._require_nothing_waits("which is of the tensors as they are")
    if not isinstance(name, str):
        raise TypeError(f"name is a {type(name).__name__}, must be a str of opt.names")
    for group in opt.param_groups:
        for tensor in group.tensors:
            if tensor.name == name:
                return tensor, group
    raise no_such_name(name, opt.names)


def _require_like(tensor: Tensor, array: Any) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"array is a {type(array).__name__}, must be a numpy.ndarray")
    if array.dtype != tensor.param.dtype:
        raise TypeError(
            f"array has dtype {array.dtype}, must be {tensor.param.dtype} as "
            f"params[{tensor.name!r}]: array.astype(opt.params[name].dtype)"
        )


def _copy_of(tensor: Tensor, copy: Any, must: bool) -> Array | None:
    """Return the array that becomes the tensor's copy; `must`: the old one does not fit."""
    if copy is None:
        if must and tensor.copy is not None:
            raise ValueError(
                f"copy is None, must be an array of the new shape: params[{tensor.name!r}] has a copy"
            )
        return tensor.copy
    if tensor.copy is None:
        raise ValueError(f"copy must be None, for params[{tensor.name!r}] has no copy")
    if not isinstance(copy, np.ndarray):
        raise TypeError(f"copy is a {type(copy).__name__}, must be a numpy.ndarray")
    return copy  # the extension checks the rest


def _axis(tensor: Tensor, axis: Any) -> int:
    ndim = tensor.param.ndim
    must_be = f"must be an axis of params[{tensor.name!r}], whose shape is {tensor.param.shape}"
    if isinstance(axis, (bool, np.bool_)):
        raise TypeError(f"axis is {axis!r}, {must_be}")
    try:
        index = operator.index(axis)
    except TypeError:
        raise TypeError(f"axis is {axis!r}, {must_be}") from None
    if not -ndim <= index < ndim:
        raise ValueError(f"axis is {axis}, {must_be}")
    return index % ndim


def _chosen(rows: Any, n: int, of: str) -> Array:
    """Return which of `n` lines are chosen, bool of shape (n,)."""
    must_be = f"must be an int, a slice, ints or {n} bools for {of}, of length {n}"
    chosen = np.zeros(n, bool)
    if isinstance(rows, slice):
        try:
            chosen[rows] = True
        except TypeError:
            raise TypeError(f"rows is {rows!r}, {must_be}") from None
        return chosen
    try:
        index = as_array(rows)
    except ValueError:  # of lists of several lengths
        raise TypeError(f"rows is {rows!r}, {must_be}") from None
    is_mask = index.dtype == bool and index.shape == (n,)
    if index.ndim > 1 or not (is_mask or index.dtype.kind in "iu" or index.shape == (0,)):
        raise TypeError(f"rows is {rows!r}, {must_be}")
    if not is_mask:
        outside = index[(index < -n) | (index >= n)]
        if outside.size:
            raise ValueError(f"rows has {outside.flat[0]}, {must_be}")
        index = index.astype(np.intp)
    chosen[index] = True
    return chosen


def _index(axis: int, lines: Array) -> tuple[Any, ...]:
    return (*[slice(None)] * axis, lines)


def _moved(array: Array, axis: int, lines: Lines, others: Array | None = None) -> Array:
    """Return an array with the lines that stay, and `others`, or zeros, in all others."""
    shape = (*array.shape[:axis], lines.n, *array.shape[axis + 1 :])
    moved = np.zeros(shape, array.dtype)
    if others is not None:
        moved[...] = others
    moved[_index(axis, lines.to)] = np.take(array, lines.kept, axis)
    return moved


def _with_means(array: Array, axis: int, lines: Lines) -> Array:
    """Return running means whose new lines are the mean of those that stay."""
    return _moved(array, axis, lines, np.take(array, lines.kept, axis).mean(axis, keepdims=True))


def _statistics(tensor: Tensor, axes: Axes | None, lines: Lines) -> dict[str, Any]:
    """Return exp_row, exp_col and v with other lines, and for `axes`, where others are factored.

    V of the elements that stay, stays. So where lines of a factored axis go, the means over that axis
    are scaled to be those over the lines that stay. Means are taken in float64, whatever the state is.
    """
    own: dict[str, Array] = {
        kind: np.asarray(x, np.float64)
        for kind, x in tensor.state.items()
        if kind in ("exp_row", "exp_col", "v")
    }
    if axes != tensor.axes:
        v = own["v"] if tensor.axes is None else _product(own, tensor.axes)
        v = _with_means(v, lines.axis, lines)
        changed = {"v": v} if axes is None else _factors(v, axes)
    elif axes is None:
        changed = {"v": _with_means(own["v"], lines.axis, lines)}
    elif lines.axis not in axes:
        axis = lines.axis - sum(factored < lines.axis for factored in axes)
        changed = {kind: _with_means(x, axis, lines) for kind, x in own.items()}
    else:
        kinds = ("exp_row", "exp_col") if lines.axis == axes.row else ("exp_col", "exp_row")
        along, across = (own[kind] for kind in kinds)
        if len(lines.kept) < along.shape[-1]:
            before = along.mean(-1, keepdims=True)
            after = np.take(along, lines.kept, -1).mean(-1, keepdims=True)
            across = across * np.divide(after, before, out=np.ones_like(after), where=before > 0)
        changed = {kinds[0]: _with_means(along, along.ndim - 1, lines), kinds[1]: across}
    with np.errstate(over="ignore"):  # what is infinite then, is refused
        kept = {kind: x.astype(tensor.state_dtype, copy=False) for kind, x in changed.items()}
    return {kind: kept.get(kind) for kind in ("exp_row", "exp_col", "v")}


def _product(means: Mapping[str, Array], axes: Axes) -> Array:
    """Return V of param's shape: outer(exp_row, exp_col) / mean(exp_row), 0 where that mean is."""
    rows, cols = means["exp_row"], means["exp_col"]
    mean = rows.mean(-1, keepdims=True)
    shares = np.divide(rows, mean, out=np.zeros_like(rows), where=mean > 0)
    return np.moveaxis(shares[..., :, None] * cols[..., None, :], (-2, -1), axes)


def _factors(v: Array, axes: Axes) -> dict[str, Array]:
    """Return the means of v over the columns of each row, and over the rows of each column."""
    matrices = np.moveaxis(v, axes, (-2, -1))
    return {
        "exp_row": np.array(matrices.mean(-1), order="C"),
        "exp_col": np.array(matrices.mean(-2), order="C"),
    }


def _moment(tensor: Tensor, array: Array, lines: Lines) -> Array | None:
    """Return m for a new param, 0 in new lines."""
    if tensor.m is None:
        return None
    m = np.zeros_like(array, tensor.m.dtype, subok=False)
    m[...] = _moved(np.asarray(tensor.m), lines.axis, lines)
    return m


def _halves(tensor: Tensor, array: Array, lines: Lines | None) -> dict[str, Any]:
    """Return param, and master and lower half, which stay where an element is the one it was."""
    changed: dict[str, Any] = {"param": array}
    if tensor.master is None and tensor.low is None:
        return changed

    def as_they_lie(old: Array) -> Array:
        plain = np.asarray(old)
        return plain if lines is None else _moved(plain, lines.axis, lines)

    stays = as_they_lie(tensor.param).view(np.uint16) == np.asarray(array).view(np.uint16)
    if lines is not None:
        is_new = np.ones(lines.n, bool)
        is_new[lines.to] = False
        stays[_index(lines.axis, is_new)] = False
    if tensor.master is not None:
        master = np.array(array, np.float32, order="K", subok=False)
        np.copyto(master, as_they_lie(tensor.master), where=stays)
        changed["master"] = master
    if tensor.low is not None:
        low = low_halves(array)
        np.copyto(low, as_they_lie(tensor.low), where=stays)
        changed["low"] = low
    return changed


def _take(opt: Model, new: Tensor, count: int | None, copy_values: Array | None) -> None:
    """Check a tensor's new state, and put it into the place of the tensor of its name."""
    if opt.nonfinite != "propagate":
        for kind, array in new.state.items():
            require_sound(kind, f"{kind} of params[{new.name!r}]", array)
    _swap(opt, new.name, new, count, copy_values)


def _swap(
    opt: Model, name: str, new: Tensor | None, count: int | None, copy_values: Array | None
) -> None:
    """Put a tensor into the place of that of its name, or none; its count stays where it is None.

    The extension checks all tensors in an object of their own. All that is written afterwards is
    written at once.
    """
    groups = [
        tuple(
            tensor if new is None or tensor.name != name else new
            for tensor in group.tensors
            if new is not None or tensor.name != name
        )
        for group in opt.param_groups
    ]
    counts = dict(zip(opt.names, opt.counts.tolist()))
    removed = opt._removed
    if new is None:
        del counts[name]
        removed |= {name}
    elif count is not None:
        counts[name] = count
    tensors = _core.Tensors()
    tensors.add(groups)
    tensors.set_counts(opt.t, opt.skipped, list(counts.values()))
    tensors.set_norms(opt._tensors.norms())
    writes: list[partial[Any]] = [
        partial(
            vars(opt).update,
            _tensors=tensors,
            _names=tuple(counts),
            _removed=removed,
            _params_are_new=True,
        ),
        partial(vars(opt._cell).update, plan=None),
    ]
    writes += [
        partial(vars(group).update, tensors=own) for group, own in zip(opt.param_groups, groups)
    ]
    if new is not None and new.copy is not None and copy_values is not None:
        writes.append(fill(new.copy, copy_values))
    all_at_once(writes)
