"""Files of numpy.savez: an archive of zip with a file of .npy for each array, not compressed.

The formats are those of ``numpy.lib.format`` and of PKWARE's APPNOTE. zipfile knows the directory; the
arrays are read here, so that nothing is unpickled, evaluated, or allocated beyond the file's size.
"""

from __future__ import annotations

import os
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from io import BufferedReader
from typing import Any, BinaryIO

import numpy as np

from adafactor_native.halves import Array
from adafactor_native.raw_arrays import n_elements, read_bytes, shaped, write_bytes

_DTYPES = {np.dtype(t).str: np.dtype(t) for t in ("f8", "i8", "f4", "f2", "u2", "u1")}
_LOCAL_HEADER = struct.Struct("<26x2H")  # of a zip: the lengths of a name and of what follows it
_MAGIC = re.compile(rb"\x93NUMPY([\1-\3])\0", re.DOTALL)
_LONGEST_HEADER = 10_000  # numpy.load refuses longer ones
_HEADER = re.compile(
    r"\{'descr': '([^']{1,20})', 'fortran_order': (False|True), "
    r"'shape': \(((?:\d{1,20}, ){0,64}(?:\d{1,20},?)?)\), \} *\n"
)
_LONGEST_NAME = 2**16 - 1


def require_names(keys: Sequence[str]) -> None:
    """Raise a ValueError if a key cannot be one of such a file."""
    all_keys = set(keys)
    for key in keys:
        if "\0" in key:
            raise ValueError(f"{key!r} has a zero byte, which a name in a .npz file cannot have")
        if len(key.encode()) + 4 > _LONGEST_NAME:
            raise ValueError(f"{key[:20]!r}... is longer than a name in a .npz file can be")
        if key + ".npy" in all_keys:
            raise ValueError(
                f"{key!r} and {key + '.npy'!r} are the same to numpy.load, must not be in one .npz "
                "file; a .safetensors file can hold them"
            )


def write(file: BinaryIO, arrays: Mapping[str, Array]) -> None:
    """Write arrays in C order, as ``numpy.savez`` does."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for key, array in arrays.items():
            entry = zipfile.ZipInfo(f"{key}.npy")
            with archive.open(entry, "w", force_zip64=True) as member:
                member.write(_npy_header(array))
                write_bytes(array, member.write)


def _npy_header(array: Array) -> bytes:
    text = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {array.shape}, }}"
    blanks = -(10 + len(text) + 1) % 64
    header = (text + " " * blanks + "\n").encode("ascii")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def read(file: BufferedReader, shown: str) -> dict[str, Array]:
    """Return all arrays, or raise a ValueError; nothing is allocated that the file's size does not allow."""
    arrays = {}
    for entry in _entries(file, shown):
        key = entry.filename.removesuffix(".npy")
        arrays[key] = _array(file, entry, f"{shown}: {key!r}")
    return arrays


def _entries(file: BufferedReader, shown: str) -> list[zipfile.ZipInfo]:
    """Return what is in an archive, known to be apart from each other and within the file."""
    size = os.fstat(file.fileno()).st_size
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (
        *(zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, OSError),
        *(struct.error, EOFError, MemoryError),
    ) as error:
        raise ValueError(f"{shown} is no archive of zip, cut or overwritten ({error})") from None
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        array = f"{shown}: {entry.filename!r}"
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise ValueError(
                f"{array} is compressed or encrypted, must be as numpy.savez writes it; "
                "load_state_dict(dict(numpy.load(path))) reads compressed ones"
            )
        stop = entry.header_offset + _LOCAL_HEADER.size + entry.compress_size
        if entry.header_offset < end or stop > size or entry.file_size != entry.compress_size:
            raise ValueError(f"{array} overlaps another array or the end of the file")
        if not entry.filename.endswith(".npy"):
            raise ValueError(f"{array} is no .npy, must be as numpy.savez writes it")
        end = stop
    if len({entry.filename for entry in entries}) != len(entries):
        raise ValueError(f"{shown} has two arrays of one name")
    return entries


def _array(file: BufferedReader, entry: zipfile.ZipInfo, shown: str) -> Array:
    cut = f"{shown} is cut or overwritten"
    file.seek(entry.header_offset)
    local = file.read(_LOCAL_HEADER.size)
    if len(local) < _LOCAL_HEADER.size or local[:4] != b"PK\3\4":
        raise ValueError(cut)
    file.seek(sum(_LOCAL_HEADER.unpack(local)), os.SEEK_CUR)
    start = file.read(12)
    magic = _MAGIC.match(start)
    if magic is None or entry.file_size < 12:
        raise ValueError(f"{shown} is no .npy of a version that is known")
    short = magic[1] == b"\1"
    before = 10 if short else 12
    length = int.from_bytes(start[8:before], "little")
    if not 2 <= length <= min(_LONGEST_HEADER, entry.file_size - before):
        raise ValueError(f"{shown} has a header of {length} bytes, must have at most its file's")
    header = start[before:] + file.read(before + length - 12)
    dtype, shape, fortran = _read_header(header, shown)
    n_bytes = entry.file_size - before - length
    if n_bytes != n_elements(shape) * dtype.itemsize:
        raise ValueError(f"{shown} has {n_bytes} bytes, not those of its shape and dtype")
    raw = read_bytes(file, n_bytes, cut)
    if zlib.crc32(raw.data, zlib.crc32(header, zlib.crc32(start[:before]))) != entry.CRC:
        raise ValueError(f"{shown} has another checksum than was written: it was changed since")
    if fortran:
        return shaped(raw, dtype, shape[::-1], shown).T
    return shaped(raw, dtype, shape, shown)


def _read_header(header: bytes, shown: str) -> tuple[np.dtype[Any], list[int], bool]:
    match = _HEADER.fullmatch(header.decode("latin-1"))
    if match is None:
        raise ValueError(f"{shown} has a header that numpy.savez does not write")
    descr, fortran, lengths = match.groups()
    if descr not in _DTYPES:
        raise ValueError(f"{shown} has dtype {descr!r}, must be of {', '.join(_DTYPES)}")
    return _DTYPES[descr], [int(n) for n in re.findall(r"\d+", lengths)], fortran == "True"
