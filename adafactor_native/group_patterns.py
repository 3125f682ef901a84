"""Groups that take their tensors by name: ``{"match": "*.bias", "weight_decay": 0.0}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from adafactor_native.given_params import copies_by_name, named_arrays
from adafactor_native.halves import Array

Given = tuple[str, Mapping[str, Any]]  # how messages show a group's keys, and the group


def by_pattern(given: Sequence[Given]) -> list[Given]:
    """Return groups that all have "params", as `read_groups` gave them.

    One with "match", a pattern or several as of `fnmatch`, takes the tensors of the other groups whose
    names match, unless a group before it has taken them. The others keep what is left.

    Raises
    ------
    TypeError, ValueError
        If a pattern is no str or matches nothing, or no group has "params".
    """
    if not any("match" in group for _, group in given):
        return list(given)
    arrays: dict[str, Array] = {}
    copies: dict[str, Array] = {}
    given_by: dict[str, int] = {}
    for g, (where, group) in enumerate(given):
        if "match" in group:
            if "params" in group or "copies" in group:
                other = "params" if "params" in group else "copies"
                raise TypeError(
                    f"{where.format('match')} is given beside {other!r}, must be given alone: it takes "
                    "the tensors of other groups, with their copies"
                )
            continue
        if "params" not in group:
            raise ValueError(f"{where.format('params')} is missing, must be given")
        first = len(arrays)
        own = named_arrays(where.format("params"), group["params"], first)
        twice = next((name for name in own if name in arrays), None)
        if twice is not None:
            raise ValueError(f"params[{twice!r}] is given twice, names must be unique")
        arrays.update(own)
        copies.update(copies_by_name(where.format("copies"), group.get("copies"), own, first))
        given_by.update(dict.fromkeys(own, g))
    taken_by = dict(given_by)
    for g, (where, group) in enumerate(given):
        if "match" in group:
            names = _matched(where.format("match"), group["match"], arrays)
            free = [name for name in names if taken_by[name] == given_by[name]]
            if not free:
                raise ValueError(
                    f"{where.format('match')} is {group['match']!r}, whose tensors a group before it "
                    "has taken, must match another: a tensor goes to the first group that it matches"
                )
            taken_by.update(dict.fromkeys(free, g))
    return [
        (
            where,
            {
                **{key: value for key, value in group.items() if key != "match"},
                "params": {name: arrays[name] for name in arrays if taken_by[name] == g},
                "copies": {name: copies[name] for name in copies if taken_by[name] == g},
            },
        )
        for g, (where, group) in enumerate(given)
    ]


def _matched(shown: str, match: Any, names: Mapping[str, Any]) -> list[str]:
    patterns = [match] if isinstance(match, str) else match
    if not isinstance(patterns, (list, tuple)) or not all(isinstance(p, str) for p in patterns):
        raise TypeError(f"{shown} is {match!r}, must be a pattern of names or a list of them")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            first = ", ".join(map(repr, list(names)[:5]))
            raise ValueError(
                f"{shown} has {pattern!r}, must match at least one of the names, {first}"
                f"{' ...' if len(names) > 5 else ''}"
            )
    return [name for name in names if any(fnmatchcase(name, p) for p in patterns)]
