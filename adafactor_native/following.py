"""Parameters that somebody else wrote to: masters follow them, and copies are written."""

from __future__ import annotations

from typing import Any

import numpy as np

from adafactor_native.halves import Array
from adafactor_native.param_groups import Tensor


def followed(tensor: Tensor, stochastic: bool) -> Array | None:
    """Return what master or lower half would be if it followed the param, or None where it does.

    Those elements of a master follow that param is not the rounded copy of any more. An element
    that is, keeps its master to the bit. With split masters an overwrite cannot be seen, but for a
    lower half that a zero or an infinity cannot have had: it becomes zero.

    Parameters
    ----------
    tensor : Tensor
        Nothing of it is written to.
    stochastic : bool
        Whether a param may be either neighbour of its master, and not the nearest only.

    Returns
    -------
    ndarray or None
        A new one, of the shape and dtype of master or low.
    """
    if tensor.master is not None:
        changed = _differs(tensor.param, tensor.master, stochastic)
        if np.count_nonzero(changed):
            return np.where(changed, tensor.param.astype(np.float32), tensor.master)
    if tensor.low is not None:
        # The whole number is the halves' sum, the lower one signed: below a zero there is none.
        magnitude = tensor.param.view(np.uint16) & 0x7FFF
        foreign = (magnitude == 0) & (tensor.low >= 0x8000)
        foreign |= (magnitude == 0x7F80) & (tensor.low != 0)  # an infinity is nothing but that
        if np.count_nonzero(foreign):
            return np.where(foreign, np.uint16(0), tensor.low)
    return None


def take_params(tensor: Tensor) -> None:
    """Make master and lower half what param is now, and write its copy, rounded to nearest."""
    if tensor.master is not None:
        tensor.master[...] = tensor.param
    if tensor.low is not None:
        tensor.low[...] = 0
    if tensor.copy is not None:
        tensor.copy[...] = rounded(tensor.param, tensor.copy.dtype)


def rounded(values: Array, dtype: np.dtype[Any]) -> Array:
    """Return what a copy of this dtype holds of a param, rounded to nearest."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # as a step rounds
        return values.astype(dtype)


def _differs(param: Array, master: Array, stochastic: bool) -> Array:
    """Return which elements are not what their master rounds to, bool of param's shape."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        nearest = master.astype(param.dtype)
        differs = np.not_equal(nearest.view(np.uint16), param.view(np.uint16))
        if not np.count_nonzero(differs):  # `any` takes memory, and fails without an exception
            return differs
        differs &= ~(np.isnan(param) & np.isnan(master))
        if stochastic:
            # Away from zero: below a negative power of two NumPy's spacing is that towards it.
            gap = np.spacing(np.abs(param)).astype(np.float32)
            differs &= ~(np.abs(param.astype(np.float32) - master) < gap)
    return differs
