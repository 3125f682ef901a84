"""Nested mappings and sequences of arrays, by names that tell the way to each: "dense/kernel"."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from typing import Any

import numpy as np

Leaves = dict[str, Any]

_MOST_AXES = 64  # of an array


def as_held(given: Any) -> Any:
    """Return what can be looked at only once, a generator or a view of a mapping, as a list."""
    return list(given) if isinstance(given, (Iterator, ValuesView, ItemsView)) else given


def is_container(node: Any) -> bool:
    """Whether it is a mapping, or a sequence that is no memory and no text."""
    if isinstance(node, (Mapping, list, tuple)):
        return True
    return (
        isinstance(node, Sequence)
        and not isinstance(node, (str, bytes, bytearray, memoryview, range))
        and not hasattr(node, "__array__")
    )


def is_branch(node: Any) -> bool:
    """Whether a part of a tree has parts of its own: it holds things, and they are not numbers.

    Numbers in lists are what somebody has not made an array of.
    """
    first = node
    for _ in range(_MOST_AXES):
        if not (isinstance(first, (list, tuple)) and first):
            break
        first = first[0]
    is_number = isinstance(first, (int, float, complex))
    return is_container(node) and (not is_number or isinstance(first, (bool, np.generic)))


def is_pairs(node: Any) -> bool:
    """Whether a sequence is one of names with what they name, as torch's ``named_parameters()``."""
    return (
        isinstance(node, Sequence)
        and len(node) > 0
        and all(isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], str) for x in node)
    )


def flatten(tree: Any, shown: str, first: int = 0) -> Leaves:
    """Return the leaves of a tree by name, in its order.

    Parameters
    ----------
    tree : mapping, or sequence of what is at positions or of pairs of a name and what it names
        Whose parts may be such again.
    shown : str
        What errors call it.
    first : int, default 0
        The position of the first element, where the tree is a sequence.

    Raises
    ------
    TypeError
        If a key is no str.
    ValueError
        If a name is there twice, or a part is in itself.
    """
    leaves: Leaves = {}
    way = [("", _parts(tree, shown, first), id(tree))]
    inside = {id(tree)}
    while way:
        above, parts, own = way[-1]
        for key, part in parts:
            name = above + key
            if is_branch(part):
                if id(part) in inside:
                    raise ValueError(f"{shown}[{name!r}] contains itself, must be a tree")
                way.append((name + "/", _parts(part, shown), id(part)))
                inside.add(id(part))
                break
            if name in leaves:
                raise ValueError(f"{shown}[{name!r}] is given twice, names must be unique")
            leaves[name] = part
        else:
            way.pop()
            inside.discard(own)
    return leaves


def spread(leaves: Leaves, names: Iterable[str]) -> Leaves:
    """Return the same, with None for all tensors of a part of the tree that is None as a whole."""
    parts = {name for name, leaf in leaves.items() if leaf is None}
    known = list(names) if parts else []
    parts.difference_update(known)
    if not parts:
        return leaves
    below = {part: [name for name in known if name.startswith(part + "/")] for part in parts}
    given = {name: leaf for name, leaf in leaves.items() if not below.get(name)}
    return {name: None for part in parts for name in below[part] if name not in given} | given


def _parts(node: Any, shown: str, first: int = 0) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, part in node.items():
            if not isinstance(key, str):
                raise TypeError(f"{shown} has the name {key!r}, must be a str")
            yield key, part
    elif is_pairs(node):
        yield from node
    else:
        for position, part in enumerate(node, first):
            yield str(position), part
