"""States in files: written array by array beside the old file, then put in its place, and read back."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Union, cast

from adafactor_native import npz_file, safetensors_file
from adafactor_native.halves import Array

Path = Union[str, "os.PathLike[str]"]

_FORMATS = {".npz": npz_file, ".safetensors": safetensors_file}


class StateFiles:
    """A file with a state, or a list or tuple of files with what each of several ranks has saved."""

    def __init__(self, paths: Path | Sequence[Path]) -> None:
        self._paths = paths

    def read(self) -> dict[str, Array] | list[dict[str, Array]]:
        """Return what is in them, or raise a ValueError that says what is wrong with a file."""
        if isinstance(self._paths, (list, tuple)):
            return [load(path) for path in self._paths]
        return load(cast("Path", self._paths))


def save(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays to a file, each from where it is: the file at `path` is the old or the new one."""
    file_format = _format_of(path)
    file_format.require_names(list(arrays))
    with _replacing(os.path.realpath(path)) as file:
        file_format.write(file, arrays)


def load(path: Path) -> dict[str, Array]:
    """Return a file's arrays, or raise a ValueError that says what is wrong with the file."""
    file_format = _format_of(path)
    with open(path, "rb") as file:
        arrays: dict[str, Array] = file_format.read(file, os.fspath(path))
    return arrays


def _format_of(path: Any) -> Any:
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise TypeError(f"path is a {type(path).__name__}, must be a str or a pathlib.Path")
    suffix = os.path.splitext(path)[1]
    if suffix not in _FORMATS:
        raise ValueError(f"path is {os.fspath(path)!r}, must end in {' or '.join(_FORMATS)}")
    return _FORMATS[suffix]


@contextmanager
def _replacing(path: str) -> Iterator[BinaryIO]:
    """Yield a new file that takes the place of `path` at the end, or goes if anything is raised."""
    folder, name = os.path.split(path)
    new = os.path.join(folder, f".{name[:40]}.{secrets.token_hex(8)}.tmp")
    if os.path.isdir(path):
        raise IsADirectoryError(f"path is {path!r}, a directory, must be a file or nothing yet")
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"path is {path!r}, must be in a directory that exists")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with open(descriptor, "wb") as file:
            with suppress(FileNotFoundError):
                os.fchmod(descriptor, stat.S_IMODE(os.stat(path).st_mode))
            yield file
            file.flush()
            os.fsync(descriptor)
        os.replace(new, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(new)
        raise
    _sync(folder)


def _sync(folder: str) -> None:
    """Have the names in a directory on the disk, so that the new file is found after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
