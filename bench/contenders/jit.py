# mypy: ignore-errors
# numba compiles these loops; to mypy they are calls of unknown decorators.
"""How numba compiles our loops: the same for its optimizer and for the roof."""

from __future__ import annotations

from numba import njit

# Reordering lets one sum run in many registers, rather than wait for each addition in turn.
FAST = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy", "nogil": True}
SERIAL_SIZE = 1 << 15  # below this many parameters, waking a second thread costs more than it saves


def serial_and_parallel(step_with):
    """Build a step from its way to compile loops with `prange`: for one thread, and for several.

    A parallel region costs even when it has one thread.
    """
    return {parallel: step_with(njit(parallel=parallel, **FAST)) for parallel in (False, True)}


@njit(**FAST)
def decayed(mean, new_mean_sq, beta2, eps):
    return beta2 * mean + (1 - beta2) * (new_mean_sq + eps)
