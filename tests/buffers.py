"""Arrays in every layout NumPy has, each inside a buffer of NaNs that nobody may change.

A buffer is filled with the byte 0xFF, which is a NaN in float32 and in float64. A read outside the
view makes the result NaN; a write outside it is found by ``assert_guards_intact``.
"""

from dataclasses import dataclass

import numpy as np

GUARD = 256  # bytes on either side, a multiple of every vector's alignment
NAN_BYTE = 0xFF


@dataclass(frozen=True)
class Layout:
    """Where the elements of an array lie.

    order : which axis is contiguous, the last ("C") or the first ("F").
    steps : stride of the first axis and of the others, in units of the dense one; may be negative.
    margin : bytes of somebody else's between one row (or column, in "F") and the next.
    gap : bytes of somebody else's between neighbouring elements.
    offset : bytes between an aligned address and the buffer's first element.
    """

    order: str = "C"
    steps: tuple[int, int] = (1, 1)
    margin: int = 0
    gap: int = 0
    offset: int = 0


LAYOUTS = {
    "C": Layout(),
    "Fortran": Layout("F"),
    "column slice": Layout(margin=40),
    "row slice of Fortran": Layout("F", margin=40),
    "row step": Layout(steps=(2, 1)),
    "column step": Layout(steps=(1, 3)),
    "both steps": Layout(steps=(2, 3)),
    "rows reversed": Layout(steps=(-1, 1)),
    "columns reversed": Layout(steps=(1, -1)),
    "both reversed": Layout(steps=(-2, -1)),
    "Fortran reversed": Layout("F", steps=(-1, -3)),
    "misaligned": Layout(offset=1),
    "misaligned Fortran": Layout("F", margin=3, offset=2),
    "odd row pitch": Layout(margin=3),
    "record field": Layout(gap=5),
}


class Buffer:
    """A copy of ``values`` as a view, ``array``, of a guarded buffer, ``base``."""

    def __init__(self, values, layout="C"):
        values = np.asarray(values)
        layout = LAYOUTS[layout] if isinstance(layout, str) else layout
        pitch = values.itemsize + layout.gap
        strides = [0] * values.ndim
        for axis in sorted(range(values.ndim), reverse=layout.order == "C"):
            step = layout.steps[0 if axis == 0 and values.ndim > 1 else 1]
            strides[axis] = pitch * step
            pitch = pitch * abs(step) * max(values.shape[axis], 1) + layout.margin
        behind = sum(-s * max(n - 1, 0) for s, n in zip(strides, values.shape) if s < 0)

        self._layout = layout
        self._place = (values.shape, values.dtype, GUARD + layout.offset + behind, strides)
        self.base = self._fresh(GUARD + layout.offset + pitch + GUARD)
        self.array = self._view(self.base)
        self.array[...] = values

    def __repr__(self):
        return f"Buffer({self.array!r}, {self._layout})"

    def assert_guards_intact(self):
        """Every byte of the buffer that is not an element of the view is as it was made."""
        twin = self._fresh(self.base.size)
        self._view(twin)[...] = self.array
        changed = np.flatnonzero(twin != self.base)
        assert changed.size == 0, f"{changed.size} bytes outside the view written, at {changed[:9]}"

    @staticmethod
    def _fresh(n_bytes):
        padded = np.full(n_bytes + 64, NAN_BYTE, np.uint8)
        return padded[-padded.ctypes.data % 64 :][:n_bytes]

    def _view(self, base):
        shape, dtype, first, strides = self._place
        return np.ndarray(shape, dtype, base, first, strides)
