"""Which two axes of a tensor are factored, and the shapes of the state that follow."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

from adafactor_native import hyperparameters as hyper

Shape = tuple[int, ...]

_NAMED = ("matrix", "last_two", "two_largest", "none")
_check_name = hyper.one_of(*_NAMED)


class Axes(NamedTuple):
    """The rows' axis and the columns'; all other axes are batched: a matrix for each index."""

    row: int
    col: int

    def state_shapes(self, shape: Shape) -> tuple[Shape, Shape]:
        """Return the shapes of exp_row and exp_col: batch axes in their order, then rows or cols."""
        batch = tuple(n for axis, n in enumerate(shape) if axis not in self)
        return (*batch, shape[self.row]), (*batch, shape[self.col])


def check_factored_axes(name: str, value: Any) -> str | tuple[int, int]:
    """Return the name of a rule or a pair of different axes, or raise an error that names it."""
    if isinstance(value, str):
        return _check_name(name, value)
    must_be = f"must be {', '.join(map(repr, _NAMED))} or two different ints"
    try:
        if not isinstance(value, Sequence):
            raise TypeError
        row, col = (operator.index(axis) for axis in value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}, {must_be}") from None
    if row == col:
        raise ValueError(f"{name} is {(row, col)}, {must_be}")
    return row, col


def axes_of(
    name: str, shape: Shape, factored_axes: str | tuple[int, int], min_dim_size_to_factor: int
) -> Axes | None:
    """Return the axes of one tensor that are factored, None if none are.

    Parameters
    ----------
    name : str
        The tensor's, for the message of an error.
    shape : tuple of int
    factored_axes : {"matrix", "last_two", "two_largest", "none"} or pair of int
        "two_largest": the columns' axis is the largest, the rows' the second largest, and of equal
        ones the last is taken for the larger (a stable argsort, as in optax).
    min_dim_size_to_factor : int
        Both axes must be at least as long.

    Raises
    ------
    ValueError
        If `factored_axes` is a pair that a tensor of two or more axes does not have.
    """
    ndim = len(shape)
    if ndim < 2 or factored_axes == "none" or (factored_axes == "matrix" and ndim > 2):
        return None
    if factored_axes == "two_largest":
        *_, row, col = sorted(range(ndim), key=shape.__getitem__)
    elif isinstance(factored_axes, str):
        row, col = ndim - 2, ndim - 1
    else:
        row, col = (axis + ndim if axis < 0 else axis for axis in factored_axes)
        if row == col or not (0 <= row < ndim and 0 <= col < ndim):
            raise ValueError(
                f"factored_axes is {factored_axes}, must be two different axes of params[{name!r}] "
                f"of shape {shape}"
            )
    return Axes(row, col) if min(shape[row], shape[col]) >= min_dim_size_to_factor else None
