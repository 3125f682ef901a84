"""Dicts that are made anew whenever they are asked for, so that nobody may write to them."""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class ReadOnlyDict(dict[K, V]):
    """A dict that refuses to be written to, with what to do instead.

    A pickle or a copy of it is a plain dict.
    """

    def __init__(self, entries: dict[K, V], instead: str) -> None:
        super().__init__(entries)
        self._instead = instead

    def _refuse(self, *arguments: Any, **named: Any) -> NoReturn:
        raise TypeError(self._instead)

    __setitem__ = _refuse
    __delitem__ = _refuse
    __ior__ = _refuse
    clear = _refuse
    pop = _refuse
    popitem = _refuse
    setdefault = _refuse
    update = _refuse

    def __reduce__(self) -> tuple[type, tuple[dict[K, V]]]:
        return dict, (dict(self),)
