"""The least that an algorithm's sweeps cost, in units of the machine's own: reads and floors.

A read is the fastest loop that reads the gradient; a floor the fastest `param -= k*grad`, which is what
apply does to memory. In front of it a step has to read the whole gradient, for what it applies
depends on all of it, and the parameter if it needs RMS(param). Arrays beside these count by bytes.
What is cold comes from memory once, whatever the sweeps: these are the fetches, in reads too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from models import Shape

FLOAT32, FLOAT64 = 4, 8


class Sweeps(NamedTuple):
    reads: float
    floors: float
    fetches: float = 2  # of grad and param


SweepsOf = Callable[[Shape, int], Sweeps]  # of a shape and the size of its items


def scaled(shape: Shape, itemsize: int, v_itemsize: int = FLOAT64) -> Sweeps:
    """grad and param, then both again and param written."""
    reads, floors, fetches = unscaled(shape, itemsize, v_itemsize)
    return Sweeps(reads + 1, floors, fetches)


def unscaled(shape: Shape, itemsize: int, v_itemsize: int = FLOAT64) -> Sweeps:
    """Without RMS(param), or carrying it: grad alone goes before the floor.

    Where nothing is factored, v is read with it, and read and written beside the floor.
    """
    if len(shape) == 2:
        return Sweeps(1, 1)
    v = v_itemsize / itemsize
    return Sweeps(1 + v, 1 + 2 * v / 3, 2 + v)


def scaled_with_float32_state(shape: Shape, itemsize: int) -> Sweeps:
    return scaled(shape, itemsize, FLOAT32)


def scaled_axes_factored(shape: Shape, itemsize: int) -> Sweeps:
    """As the other libraries define it: tensors of more than two axes are factored too."""
    return Sweeps(2, 1) if len(shape) >= 2 else scaled(shape, itemsize)


def of_apply(shape: Shape, itemsize: int) -> Sweeps:
    """What is left when all has been measured."""
    _, floors, fetches = unscaled(shape, itemsize)
    return Sweeps(0, floors, fetches)
