"""What the extension was built with and what it runs on."""

from __future__ import annotations

import json
from typing import Any, Literal, overload

from adafactor_native._runtime import _core
from adafactor_native.threads import get_num_threads


def _openmp_runtime() -> str | None:
    """Return the file name of the OpenMP library in this process."""
    try:
        with open("/proc/self/maps") as maps:
            files = {line.rsplit("/", 1)[-1].strip() for line in maps if "/" in line}
    except OSError:
        return None
    names = sorted(f for f in files if f.startswith(("libgomp", "libomp", "libiomp")))
    return ", ".join(names) or None


@overload
def show_config(mode: Literal["stdout"] = ...) -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> dict[str, Any] | None:
    """Show how adafactor_native was built and what it runs on, as `numpy.show_config` does.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Print, or return.

    Returns
    -------
    dict or None
        With ``mode="dicts"``: "version", "compiler", "openmp", "instruction sets", "walks",
        "threads".

        "walks" is about the order in which rows are come to, which is a matter of speed alone:
        "forced" is ``ADAFACTOR_WALK``, or "auto"; "cache" and "memory" have what "auto" is for
        arrays that come from there, for each of the sweeps "measure" (of the gradient),
        "sum_param" and "apply". "measured" becomes true when steps have shown which walk is
        faster here; until then it is what the processor's vendor suggests.

    Raises
    ------
    ValueError
        If `mode` is neither.
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"mode is {mode!r}, must be 'stdout' or 'dicts'")
    name, version = _core.compiler
    config = {
        "version": _core.version,
        "compiler": {"name": name, "version": version},
        "openmp": {
            "enabled": _core.openmp > 0,
            "specification": _core.openmp or None,
            "runtime": _openmp_runtime() if _core.openmp else None,
        },
        "instruction sets": {
            "built": _core.built_isas(),
            "available": _core.available_isas(),
            "running": _core.running_isa(),
        },
        "walks": {
            "forced": _core.forced_walk(),
            **{
                place: {
                    sweep: {"walk": walk, "measured": measured}
                    for sweep, (walk, measured) in sweeps.items()
                }
                for place, sweeps in _core.walks().items()
            },
        },
        "threads": {"limit": get_num_threads() if _core.openmp else 1},
    }
    if mode == "dicts":
        return config
    print(json.dumps(config, indent=2))
    return None
