"""What all state dicts share: a header of JSON among flat arrays, written and checked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from adafactor_native import hyperparameters as hyper
from adafactor_native._runtime import _core

Array = npt.NDArray[Any]

_MOST_STEPS = 2**53


def header_array(file_format: str, version: int, header: Mapping[str, Any]) -> Array:
    """Return a header as an array of uint8."""
    whole = {
        "format": file_format,
        "format_version": version,
        "package_version": _core.version,
        **header,
    }
    return np.frombuffer(json.dumps(whole).encode(), np.uint8).copy()


def read_state(
    state: Any, file_format: str, versions: tuple[int, ...], types: Mapping[str, type]
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return a state's arrays and its header, known to be of a format and to have keys of these types."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state is a {type(state).__name__}, must be a mapping from str to arrays")
    arrays = {key: state[key] for key in state}
    must_be = f"must be that of a state_dict of {file_format}"
    if "header" not in arrays:
        raise ValueError(f"state has no 'header', {must_be}")
    array = arrays["header"]
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 1:
        raise TypeError("state['header'] must be a numpy.ndarray of uint8 with one axis")
    try:
        header = json.loads(array.tobytes().decode())
    except (ValueError, RecursionError):  # the latter of a million brackets
        raise ValueError(f"state['header'] is no JSON, cut or overwritten, {must_be}") from None
    if not isinstance(header, dict) or header.get("format") != file_format:
        is_piece = isinstance(header, dict) and header.get("format") == f"{file_format}.piece"
        instead = " with gather=True, or a list of those of all ranks" if is_piece else ""
        what = "what one of several ranks has" if is_piece else "not ours"
        raise ValueError(f"state['header'] is {what}, {must_be}{instead}")
    version = header.get("format_version")
    if version not in versions:
        raise ValueError(
            f"state['header'] has format version {version} (adafactor_native "
            f"{header.get('package_version')}), must have {' or '.join(map(str, versions))} "
            f"(adafactor_native {_core.version})"
        )
    for key, expected in types.items():
        if key not in header or not isinstance(header[key], expected):
            raise ValueError(f"state['header'] has no {key!r} that makes sense, {must_be}")
    return arrays, header


def require_same(what: str, saved: Any, own: Any, remedy: str = "") -> None:
    if saved != own:
        raise ValueError(
            f"{what} was {saved!r} when the state was saved, must be {own!r} as here{remedy}"
        )


def steps(shown: str, value: Any) -> int:
    """Return a number of steps from elsewhere: an int that a float64 holds, far from any overflow."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{shown} is a {type(value).__name__}, must be an int >= 0")
    if value > _MOST_STEPS:
        raise ValueError(f"{shown} is too large, must be an int >= 0 and <= 2**53")
    return hyper.count(shown, value)


def staged_arrays(
    arrays: Mapping[str, Any], own: Mapping[str, Array], copy: bool = True
) -> dict[str, Array]:
    """Return copies of a state's arrays, known to be as ours are; nobody else can change them.

    Where nobody else has them either, `copy` may be false.
    """
    require_keys("{!r}", [key for key in arrays if key != "header"], own)
    for key, array in own.items():
        given = arrays[key]
        if not isinstance(given, np.ndarray):
            raise TypeError(f"state[{key!r}] is a {type(given).__name__}, must be a numpy.ndarray")
        if given.dtype != array.dtype:
            raise TypeError(f"state[{key!r}] has dtype {given.dtype}, must be {array.dtype}")
        if given.shape != array.shape:
            raise ValueError(f"state[{key!r}] has shape {given.shape}, must be {array.shape}")
    if not copy:
        return {key: arrays[key] for key in own}
    return {key: np.array(arrays[key], array.dtype, subok=False) for key, array in own.items()}


def require_keys(shown: str, given: Iterable[str], own: Iterable[str], remedy: str = "") -> None:
    """Raise an error that tells both, for a renamed key is missing and unknown at once."""

    def listed(keys: set[str]) -> str:
        first = ", ".join(shown.format(key) for key in sorted(keys, key=str)[:5])
        return f"{first} and {len(keys) - 5} more" if len(keys) > 5 else first

    missing, unknown = set(own) - set(given), set(given) - set(own)
    parts = [f"has no {listed(missing)}"] if missing else []
    parts += [f"has {listed(unknown)}"] if unknown else []
    if parts:
        raise ValueError(
            f"state {' and '.join(parts)}, must have this optimizer's and no others{remedy}"
        )
