"""Half-precision arrays: the dtype NumPy does not have, and what stands in for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def bfloat16(wanted_by: str) -> np.dtype[Any]:
    """Return ml_dtypes' bfloat16, which is imported only where somebody asks for it by name."""
    try:
        import ml_dtypes
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{wanted_by}, which needs the package ml_dtypes: pip install "
            "'adafactor_native[bfloat16]'"
        ) from None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def is_half(dtype: np.dtype[Any]) -> bool:
    return dtype == np.float16 or dtype.name == "bfloat16"


def portable(array: Array) -> Array:
    """Return an array as files can hold it: bfloat16 as uint16, the same memory; others as it is.

    Neither ``numpy.load`` nor safetensors knows bfloat16.
    """
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def low_halves(param: Array) -> Array:
    """Return zeros of uint16 that lie as `param` does: its shape, and its strides to the byte."""
    if param.size == 0:
        return np.zeros(param.shape, np.uint16)
    reach = [stride * (n - 1) for stride, n in zip(param.strides, param.shape)]
    before = -sum(step for step in reach if step < 0)
    room = np.zeros(before + sum(step for step in reach if step > 0) + 2, np.uint8)
    return np.ndarray(param.shape, np.uint16, room, before, param.strides)
