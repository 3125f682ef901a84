"""Errors of one rank, raised by all with the same words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

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


def agreed_error(rank: int, size: int, described: list[str]) -> Exception:
    """Return the error that all ranks raise for one of them, which is named if it has others."""
    kind, text = described
    return _KINDS[kind](f"rank {rank}: {text}" if size > 1 else text)


def first_error(engine: Engine, error: Exception | None) -> Exception | None:
    """Return what all ranks raise, the error of the first rank that has one, or None; all must call it."""
    everyones = all_gather(engine, None if error is None else describe(error))
    found = ((rank, described) for rank, described in enumerate(everyones) if described is not None)
    return next((agreed_error(rank, engine.size, described) for rank, described in found), None)


def raise_together(engine: Engine, error: Exception | None) -> None:
    """Raise the error of the first rank that has one, on all ranks; do nothing where none has."""
    agreed = first_error(engine, error)
    if agreed is not None:
        raise agreed from error


def together(engine: Engine, function: Callable[[], T]) -> T:
    """Return what a function returns that needs no other rank, or raise the same on all ranks."""
    result: Any = None
    error = None
    try:
        result = function()
    except Exception as raised:  # noqa: BLE001 (all ranks raise it)
        error = raised
    raise_together(engine, error)
    return result  # type: ignore[no-any-return]
