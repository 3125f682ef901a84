"""Errors of one rank, raised by all with the same words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from adafactor_native.sharding.all_gather import all_gather
from adafactor_native.sharding.engine import Engine

T = TypeVar("T")

_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        *(TypeError, ValueError, KeyError, IndexError, AttributeError),
        *(FloatingPointError, RuntimeError, MemoryError, OSError, FileNotFoundError),
        *(IsADirectoryError, PermissionError),
    )
}


def describe(error: Exception) -> list[str]:
    """Return an error as JSON has it: the nearest built-in kind, and what it says."""
    kind = next(
        base.__name__ for base in type(error).__mro__ if base.__name__ in (*_KINDS, "object")
    )
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return [kind if kind in _KINDS else "RuntimeError", str(text)]


def first_error(engine: Engine, error: Exception | None) -> Exception | None:
    """Return what all ranks raise, the error of the first rank that has one, or None; all must call it.

    The rank is named if it has others.
    """
    everyones = all_gather(engine, None if error is None else describe(error))
    for rank, described in enumerate(everyones):
        if described is not None:
            kind, text = described
            return _KINDS[kind](f"rank {rank}: {text}" if engine.size > 1 else text)
    return None


def error_of_some(engine: Engine, error: Exception | None) -> Exception:
    """Return what all ranks raise where some rank is known to have an error; all must call it."""
    found = first_error(engine, error)
    assert found is not None
    return found


def together(engine: Engine, function: Callable[[], T]) -> T:
    """Return what a function returns that needs no other rank, or raise the same on all ranks."""
    try:
        result = function()
    except Exception as error:
        raise error_of_some(engine, error) from error
    found = first_error(engine, None)
    if found is not None:
        raise found
    return result
