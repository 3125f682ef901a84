"""Views of any shape and strides in one arena of bytes that nobody else may touch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Rng = np.random.Generator


@dataclass(frozen=True)
class Place:
    """Where an array's elements lie in an arena; strides are in bytes."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    strides: tuple[int, ...]

    def view(self, arena: np.ndarray) -> np.ndarray:
        return np.ndarray(self.shape, self.dtype, arena, self.offset, self.strides)

    def mark(self, mask: np.ndarray) -> None:
        """Set the bytes of all elements in a mask of the arena."""
        item = self.dtype.itemsize
        shape, strides = (*self.shape, item), (*self.strides, 1)
        np.ndarray(shape, np.bool_, mask, self.offset, strides)[...] = True


class Arena:
    """Hands out places one behind the other, with bytes of nobody's between them."""

    def __init__(self) -> None:
        self.size = 64

    def place(self, rng: Rng, shape: tuple[int, ...], dtype: Any, broadcasts: bool) -> Place:
        """Any order of axes, steps, gaps and signs; an offset that is no multiple of the item.

        If it `broadcasts`, some axes may have a stride of 0: of arrays that are only read.
        """
        dtype = np.dtype(dtype)
        dense = rng.random() < 0.4
        gap = 0 if dense or rng.random() < 0.8 else int(rng.integers(1, 9))
        axes = rng.permutation(len(shape)) if rng.random() < 0.4 else range(len(shape))[::-1]
        pitch, first = dtype.itemsize + gap, 0
        strides = [0] * len(shape)
        for axis in axes:
            n = shape[axis]
            if broadcasts and not dense and rng.random() < 0.06:
                continue
            step = 1 if dense or rng.random() < 0.7 else int(rng.integers(2, 4))
            strides[axis] = pitch * step
            pitch *= step * max(n, 1)
            if not dense and rng.random() < 0.3:
                pitch += int(rng.integers(1, 41))
            if not dense and rng.random() < 0.15:
                first += strides[axis] * max(n - 1, 0)
                strides[axis] = -strides[axis]
        aligned = -(-self.size // 64) * 64 if rng.random() < 0.5 else self.size
        offset = aligned + (int(rng.integers(0, 64)) if rng.random() < 0.6 else 0)
        self.size = offset + pitch + int(rng.integers(0, 40))
        return Place(shape, dtype, offset + first, tuple(strides))

    def filled(self, rng: Rng) -> np.ndarray:
        """An arena of bytes that no step would leave by chance."""
        room = np.frombuffer(rng.bytes(self.size + 128), np.uint8).copy()
        return room[-room.ctypes.data % 64 :][: self.size + 64]
