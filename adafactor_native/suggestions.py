"""What somebody may have meant by a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any


def closest(name: Any, known: Iterable[str]) -> str | None:
    """Return the known name that is most like this one, or begins with it; None if none does."""
    by_lower = {other.lower(): other for other in known}
    lower = str(name).lower()
    found = difflib.get_close_matches(lower, by_lower, n=1) or [
        other
        for other in by_lower
        if other.startswith(lower) or sorted(other) == sorted(lower)  # "rl" for "lr"
    ]
    return by_lower[found[0]] if lower and found else None


def no_such_name(name: str, names: Iterable[str]) -> ValueError:
    """Return the error that says that no tensor is called so, and which one may be meant."""
    guess = closest(name, names)
    instead = f"did you mean {guess!r}?" if guess else "must be one of opt.names"
    return ValueError(f"name is {name!r}, {instead}")


class KnownAttributes:
    """Refuses to set an attribute that the class does not define, with what to do instead.

    A misspelt hyper-parameter would otherwise be kept and never looked at. Python itself refuses to
    read one; a ``__getattr__`` that says more would make every other attribute slower to find.
    """

    if not TYPE_CHECKING:  # a type checker would take any name for known

        def __setattr__(self, name: str, value: Any) -> None:
            if not (name.startswith("_") or hasattr(type(self), name)):
                raise AttributeError(self._unknown_attribute(name))
            object.__setattr__(self, name, value)

    def _unknown_attribute(self, name: str) -> str:
        known = (attribute for attribute in dir(type(self)) if not attribute.startswith("_"))
        guess = None if name.startswith("_") else closest(name, known)
        instead = f", did you mean {guess!r}?" if guess else ""
        return f"{type(self).__name__} has no attribute {name!r}{instead}"
