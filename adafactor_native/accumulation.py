"""Sums of micro-gradients, which wait for the step that takes them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import setitem
from typing import Any

import numpy as np

from adafactor_native.param_groups import Array, Tensor
from adafactor_native.taking_over import all_at_once

_REDUCTIONS = ("mean", "sum")


class Accumulated:
    """What `Optimizer.accumulate` has added up since the last step.

    Attributes
    ----------
    n : int
        How often gradients were added.
    sums : dict of str to ndarray of float32 or float64
        By tensor; those without a gradient so far are not in it.
    """

    def __init__(self) -> None:
        self.n = 0
        self.sums: dict[str, Array] = {}

    def add(self, tensors: Sequence[Tensor], grads: Sequence[Any]) -> None:
        """Add gradients, in the order of the tensors, or raise and change nothing."""
        given = [(tensor, grad) for tensor, grad in zip(tensors, grads) if grad is not None]
        for tensor, grad in given:
            _check(tensor, grad)
        writes: list[partial[Any]] = []
        with np.errstate(all="ignore"):  # what is not finite is the step's to refuse
            for tensor, grad in given:
                name, own = tensor.name, self.sums.get(tensor.name)
                wide = np.float64 in (tensor.param.dtype, grad.dtype)
                dtype = np.dtype(np.float64 if wide else np.float32)
                if own is None:
                    new = np.array(grad, dtype, order="K", subok=False)
                    writes.append(partial(setitem, self.sums, name, new))
                elif own.dtype.itemsize < dtype.itemsize:
                    new = np.add(own, grad, out=np.empty_like(own, dtype))
                    writes.append(partial(setitem, self.sums, name, new))
                else:
                    writes.append(partial(np.add, own, grad, out=own, dtype=own.dtype))
            all_at_once([*writes, partial(vars(self).update, n=self.n + 1)])

    def divisor(self, reduce: str | None) -> int:
        """Return what the sums are to be divided by."""
        if reduce is None or reduce == "mean":
            return self.n
        if reduce == "sum":
            return 1
        raise ValueError(f"reduce is {reduce!r}, must be {' or '.join(map(repr, _REDUCTIONS))}")

    def require_none(self, doing: str) -> None:
        """Raise a ValueError if there are sums, which `doing` would lose."""
        if self.n:
            raise ValueError(
                f"{self.n} accumulated gradients wait for a step, {doing}: take it by opt.step(), or "
                "drop them by opt.accumulate(None)"
            )


def _check(tensor: Tensor, grad: Any) -> None:
    shown, shape = f"grads[{tensor.name!r}]", tensor.param.shape
    is_scalar = isinstance(grad, np.floating) and shape == ()
    if isinstance(grad, np.ma.MaskedArray) or not (isinstance(grad, np.ndarray) or is_scalar):
        raise TypeError(f"{shown} is a {type(grad).__name__}, must be a numpy.ndarray")
    known = grad.dtype in (np.float16, np.float32, np.float64) or grad.dtype.name == "bfloat16"
    if not known or not grad.dtype.isnative:
        raise TypeError(
            f"{shown} has dtype {grad.dtype}, must be float16, bfloat16, float32 or float64"
        )
    if grad.shape != shape:
        raise ValueError(f"{shown} has shape {grad.shape}, must be {shape}")
