"""Files of safetensors: 8 bytes with the length of a header of JSON, the header, then all elements.

The format is that of https://huggingface.co/docs/safetensors. Its own writer takes all arrays at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from io import BufferedReader
from typing import Any, BinaryIO, NoReturn

import numpy as np

from adafactor_native.halves import Array
from adafactor_native.raw_arrays import n_elements, read_bytes, shaped, write_bytes

_NAMES = {
    "float64": "F64",
    "int64": "I64",
    "float32": "F32",
    "float16": "F16",
    "uint16": "U16",
    "uint8": "U8",
}
_DTYPES = {name: np.dtype(dtype) for dtype, name in _NAMES.items()}
_METADATA = "__metadata__"
_LONGEST_HEADER = 100_000_000  # safetensors refuses longer ones
_MOST_DIGITS = 20


def require_names(keys: Sequence[str]) -> None:
    """Raise a ValueError if a key cannot be one of such a file."""
    if _METADATA in keys:
        raise ValueError(f"{_METADATA!r} is the name of something else in a .safetensors file")


def write(file: BinaryIO, arrays: Mapping[str, Array]) -> None:
    """Write arrays, the largest elements first, so that each begins at a multiple of its element's size."""
    keys = sorted(arrays, key=lambda key: (-arrays[key].itemsize, key))
    header: dict[str, Any] = {}
    end = 0
    for key in keys:
        array = arrays[key]
        start, end = end, end + array.nbytes
        header[key] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": array.shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _LONGEST_HEADER:
        raise ValueError(
            f"the names of {len(keys)} arrays take {len(text)} bytes, must be at most "
            f"{_LONGEST_HEADER} for a .safetensors file"
        )
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for key in keys:
        write_bytes(arrays[key], file.write)


def read(file: BufferedReader, shown: str) -> dict[str, Array]:
    """Return all arrays, or raise a ValueError; nothing is allocated that the file's size does not allow."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= length <= min(size - 8, _LONGEST_HEADER):
        raise ValueError(
            f"{shown} has a header of {length} bytes in a file of {size}, must be a whole file of "
            "safetensors"
        )
    end = 0
    arrays = {}
    described = _described(_header(file.read(length), shown), shown)
    for key, (dtype, shape, start, stop) in sorted(described.items(), key=lambda kv: kv[1][2:]):
        array = f"{shown}: {key!r}"
        if start != end or stop < start or stop > size - 8 - length:
            raise ValueError(
                f"{array} has the offsets {start} and {stop}, must begin at {end} and end in the "
                f"file, which has {size - 8 - length} bytes of elements"
            )
        if stop - start != n_elements(shape) * dtype.itemsize:
            raise ValueError(f"{array} has {stop - start} bytes, not those of its shape and dtype")
        end = stop
        raw = read_bytes(file, stop - start, f"{array} is cut")
        arrays[key] = shaped(raw, dtype, shape, array)
    if end != size - 8 - length:
        raise ValueError(f"{shown} has {size - 8 - length - end} bytes behind its last array")
    return arrays


def _header(text: bytes, shown: str) -> dict[str, Any]:
    try:
        header = json.loads(
            text.decode(),
            object_pairs_hook=_unique,
            parse_int=_short_int,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except _NotOursError as error:
        raise ValueError(f"{shown} has a header with {error}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{shown} has a header that is no JSON") from None
    if type(header) is not dict:
        raise ValueError(f"{shown} has a header that is no mapping from names")
    header.pop(_METADATA, None)
    return header


def _described(
    header: Mapping[str, Any], shown: str
) -> dict[str, tuple[np.dtype[Any], list[int], int, int]]:
    """Return dtype, shape, beginning and end of each array, of the right types."""
    described = {}
    for key, entry in header.items():
        array = f"{shown}: {key!r}"
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{array} must have dtype, shape and data_offsets, and no more")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise ValueError(f"{array} has dtype {dtype!r}, must be of {', '.join(_DTYPES)}")
        if not _are_lengths(shape):
            raise ValueError(f"{array} has a shape that is no list of lengths")
        if not _are_lengths(offsets) or len(offsets) != 2:
            raise ValueError(f"{array} has offsets that are not two numbers of bytes")
        described[key] = (_DTYPES[dtype], shape, offsets[0], offsets[1])
    return described


def _are_lengths(values: Any) -> bool:
    return (
        isinstance(values, list) and len(values) <= 64 and all(type(n) is int for n in values)
    ) and all(n >= 0 for n in values)


class _NotOursError(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise _NotOursError(f"{twice!r} twice")
    return entries


def _short_int(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise _NotOursError("a number beyond any file")
    return int(digits)


def _no_number(text: str) -> NoReturn:
    raise _NotOursError("a number that is no int")
