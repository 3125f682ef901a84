"""States that ranks have saved each for itself, together again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from adafactor_native.factoring import Axes
from adafactor_native.halves import Array
from adafactor_native.sharding.layouts import empty_piece, roles_of
from adafactor_native.sharding.pieces import Piece, Shape, from_json
from adafactor_native.sharding.whole_arrays import piece_of, whole_shape

Header = dict[str, Any]

# What is each rank's own in a header.
_OF_A_RANK = ("rank", "pieces")


class WholeFromPieces:
    """An array of a whole tensor's state that is made when somebody asks for it, not before."""

    def __init__(self, make: Callable[[], Array]) -> None:
        self.make = make


def whole(array: Any) -> Any:
    """Return what a state has for an array, made now if it is of pieces."""
    return array.make() if isinstance(array, WholeFromPieces) else array


def merged(read: Sequence[tuple[Mapping[str, Any], Header]]) -> tuple[dict[str, Any], Header]:
    """Return arrays and the header of the state of one process, from those of all ranks.

    Parameters
    ----------
    read : sequence of (arrays, header)
        Of each rank, in any order.

    Returns
    -------
    arrays : dict of str to WholeFromPieces or ndarray
    header : dict

    Raises
    ------
    TypeError, ValueError
        If a rank's state is missing or there twice, they are of different steps or models, or an
        array is not what its header says.
    """
    first = read[0][1]
    for _, header in read:
        for key in {*first, *header}.difference(_OF_A_RANK):
            if first.get(key) != header.get(key):
                raise ValueError(
                    f"{key} of the state of rank {header['rank']} is another than that of rank "
                    f"{first['rank']}: all must be of one step of one model"
                )
    size = first.get("size")
    by_rank = {header["rank"]: (arrays, header) for arrays, header in read}
    if len(read) != size or sorted(by_rank) != list(range(size)):
        raise ValueError(
            f"states are of ranks {', '.join(str(header['rank']) for _, header in read)}, must be of "
            f"all {size}, each once"
        )
    everything = [by_rank[rank] for rank in range(size)]
    merged_arrays: dict[str, Any] = {"t": everything[0][0].get("t")}
    for i, tensor in enumerate(first["tensors"]):
        name, shape = tensor["name"], tuple(tensor["shape"])
        axes = None if tensor["factored_axes"] is None else Axes(*tensor["factored_axes"])
        pieces = [from_json(header["pieces"][i]) for _, header in everything]
        layout = roles_of(name, shape, pieces, axes)[0].layout
        held = [piece if piece.size else empty_piece(shape, layout, axes) for piece in pieces]
        for kind in (*(("param",) if first["params"] else ()), *tensor["state"]):
            key = f"{kind}/{name}"
            parts = [arrays.get(key) for arrays, _ in everything]
            merged_arrays[key] = WholeFromPieces(_maker(key, kind, shape, axes, held, parts))
    return merged_arrays, {key: first[key] for key in first if key not in (*_OF_A_RANK, "size")}


def _maker(
    key: str,
    kind: str,
    shape: Shape,
    axes: Axes | None,
    pieces: Sequence[Piece],
    parts: Sequence[Any],
) -> Callable[[], Array]:
    def make() -> Array:
        dtype = next(part.dtype for part in parts if isinstance(part, np.ndarray))
        array = np.zeros(whole_shape(shape, axes, kind), dtype)
        for rank, (piece, part) in enumerate(zip(pieces, parts)):
            here = piece_of(array, shape, axes, piece, kind)
            if not isinstance(part, np.ndarray) or part.dtype != dtype or part.shape != here.shape:
                raise ValueError(
                    f"{key!r} in the state of rank {rank} must be a numpy.ndarray of {dtype} and shape "
                    f"{here.shape}"
                )
            here[...] = part
        return array

    return make
