"""Loads the extension, and with it the OpenMP runtime, and lets the environment configure both."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

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


with _short_waiting():
    try:
        from adafactor_native import _core
    except ImportError as error:
        raise ImportError(
            f"adafactor_native._core cannot be loaded ({error}). In a checkout of the sources, "
            "Python finds the bare folder before the installed package: start it elsewhere, or "
            'install in place with: pip install -e ".[test]"'
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
