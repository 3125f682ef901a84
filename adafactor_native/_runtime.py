"""Loads the extension, and with it the OpenMP runtime, and lets the environment configure both."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator

from adafactor_native.remedies import remedy

__all__ = ["_core"]

# How long an idle thread of the team watches for work before it sleeps. The runtimes' defaults (15 ms
# in libgomp, 200 ms in libomp) take a core from everybody else, and from ourselves when it is busy:
# of steps of 0.5 ms on two cores, one in ten then takes 5 to 24 ms. Sleeping at once makes every step
# pay for waking. 1000 turns are about 60 microseconds; bench/ measures both sides.
_WAITING = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
_CHOSEN_BY_USER = ("OMP_WAIT_POLICY", *_WAITING)


@contextlib.contextmanager
def _short_waiting() -> Iterator[None]:
    """Set the waiting policy in the environment, where runtimes read it once, when they start."""
    if any(name in os.environ for name in _CHOSEN_BY_USER):
        yield
        return
    os.environ.update(_WAITING)
    try:
        yield
    finally:
        for name in _WAITING:
            del os.environ[name]


def _require_main_interpreter() -> None:
    """Refuse a sub-interpreter, in CPython's words for it.

    Later would be too late: CPython 3.13 calls the init function in the main interpreter first, and
    pybind11 waits forever for what it keeps there.
    """
    name = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    try:
        interpreters = importlib.import_module(name)
    except ImportError:  # this Python was built without
        return
    if interpreters.get_current() != interpreters.get_main():
        raise ImportError(
            "module adafactor_native._core does not support loading in subinterpreters"
        )


with _short_waiting():
    try:
        _require_main_interpreter()
        from adafactor_native import _core
    except ImportError as error:
        raise ImportError(
            f"adafactor_native._core cannot be loaded ({error}). {remedy(error)}"
        ) from error


def _choose_isa() -> None:
    name = os.environ.get("ADAFACTOR_ISA")
    if name is not None and not _core.set_isa(name):
        raise ValueError(
            f"ADAFACTOR_ISA is {name!r}, must be one of {', '.join(_core.available_isas())} "
            "on this machine"
        )


def _choose_walk() -> None:
    name = os.environ.get("ADAFACTOR_WALK")
    if name is not None and not _core.force_walk(name):
        raise ValueError(
            f"ADAFACTOR_WALK is {name!r}, must be one of auto, side_by_side, one_by_one"
        )


_choose_isa()
_choose_walk()
