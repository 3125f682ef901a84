"""An optimizer's state as a flat dict of arrays: written, checked, and read back bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from adafactor_native import hyperparameters as hyper
from adafactor_native._runtime import _core
from adafactor_native.halves import portable
from adafactor_native.param_groups import Array, Tensor
from adafactor_native.switches import SETTLED, Switches

if TYPE_CHECKING:
    from adafactor_native.optimizer import Optimizer

FORMAT = "adafactor_native.Optimizer"
FORMAT_VERSION = 1

_CALLABLE = {"callable": True}  # what a header has for what cannot be written


def state_dict(opt: Optimizer, params: bool) -> dict[str, Array]:
    """Return copies of all that an optimizer remembers; see `Optimizer.state_dict`."""
    tensors = [(g, x) for g, group in enumerate(opt.param_groups) for x in group.tensors]
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "package_version": _core.version,
        "convention": opt.convention,
        "t": opt.t,
        "skipped": opt.skipped,
        "max_grad_norm": opt.max_grad_norm,
        "seed": opt.seed,
        "params": params,
        "groups": [_written(group.switches) for group in opt.param_groups],
        "tensors": [_description(tensor, g) for g, tensor in tensors],
    }
    arrays = {
        f"{kind}/{tensor.name}": np.array(portable(array), order="C", subok=False)
        for _, tensor in tensors
        for kind, array in _kept(tensor, params).items()
    }
    text = np.frombuffer(json.dumps(header).encode(), np.uint8).copy()
    return {"header": text, "t": opt.counts, **arrays}


def load_state_dict(opt: Optimizer, state: Mapping[str, Array]) -> None:
    """Take a state over, or raise and change nothing; see `Optimizer.load_state_dict`."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state is a {type(state).__name__}, must be a mapping from str to arrays")
    arrays = {key: state[key] for key in state}
    header = _header(arrays)
    _require_same("convention", header.get("convention"), opt.convention)
    max_grad_norm = hyper.positive_or_none("header['max_grad_norm']", header["max_grad_norm"])
    t, skipped, seed = (
        hyper.count(f"header[{key!r}]", header[key]) for key in ("t", "skipped", "seed")
    )
    _require_same("the number of groups", len(header["groups"]), len(opt.param_groups))
    switches = [
        group.checked(_read(given, group.switches, shown), shown + "[{!r}]")
        for g, (given, group) in enumerate(zip(header["groups"], opt.param_groups))
        for shown in [f"header['groups'][{g}]"]
    ]
    names = _check_tensors(header["tensors"], opt)

    own = {
        f"{kind}/{tensor.name}": portable(array)
        for tensor in opt.tensors
        for kind, array in _kept(tensor, header["params"]).items()
    }
    _check_arrays(arrays, {"t": opt.counts, **own})
    saved = dict(zip(names, arrays["t"].tolist()))
    for tensor in opt.tensors if header["params"] else ():
        if not tensor.param.flags.writeable:
            raise ValueError(f"params[{tensor.name!r}] is read-only, must be writeable")
    for name, count in saved.items():
        if not 0 <= count <= t:
            raise ValueError(f"state['t'] is {count} for params[{name!r}], must be in 0 to {t}")

    opt._set_counts(t, skipped, [saved[name] for name in opt.names])
    opt.max_grad_norm = max_grad_norm
    opt.seed = seed
    for group, values in zip(opt.param_groups, switches):
        group.take(values)
    for key, array in own.items():
        array[...] = arrays[key]


def _kept(tensor: Tensor, params: bool) -> dict[str, Array]:
    return {**({"param": tensor.param} if params else {}), **tensor.state}


def _description(tensor: Tensor, group: int) -> dict[str, Any]:
    """Return what must be the same where a tensor's state is loaded, as JSON has it."""
    return {
        "name": tensor.name,
        "shape": list(tensor.param.shape),
        "dtype": tensor.param.dtype.name,
        "group": group,
        "factored_axes": None if tensor.axes is None else list(tensor.axes),
        "state": list(tensor.state),
        "decays": tensor.decays,
    }


def _written(switches: Switches) -> Switches:
    return {
        name: _CALLABLE if callable(value) else value
        for name, value in switches.items()
        if name not in SETTLED
    }


def _read(given: Any, own: Switches, shown: str) -> Switches:
    """Return the switches that were written, without those that stay the optimizer's own."""
    expected = [name for name in own if name not in SETTLED]
    if not isinstance(given, dict) or sorted(given) != sorted(expected):
        raise ValueError(f"{shown} must have the switches {', '.join(expected)} and no others")
    values = {}
    for name, value in given.items():
        was_callable = value == _CALLABLE
        if was_callable and not callable(own[name]):
            raise ValueError(
                f"{name} is {own[name]!r}, must be a callable, as it was when the state was saved"
            )
        if callable(own[name]) and not was_callable:
            raise ValueError(
                f"{name} is a callable, must be as when the state was saved, {value!r}, and can be "
                "set after loading"
            )
        if not was_callable:
            values[name] = value
    return values


def _header(arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Return the header, known to have every key that this version writes."""
    must_be = f"must be that of a state_dict of {FORMAT}"
    if "header" not in arrays:
        raise ValueError(f"state has no 'header', {must_be}")
    array = arrays["header"]
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 1:
        raise TypeError("state['header'] must be a numpy.ndarray of uint8 with one axis")
    try:
        header = json.loads(array.tobytes().decode())
    except ValueError:
        raise ValueError(f"state['header'] is no JSON, cut or overwritten, {must_be}") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"state['header'] is not ours, {must_be}")
    version = header.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"state['header'] has format version {version} (adafactor_native "
            f"{header.get('package_version')}), must have {FORMAT_VERSION} "
            f"(adafactor_native {_core.version})"
        )
    types = {"groups": list, "tensors": list, "params": bool}
    for key in ("convention", "t", "skipped", "max_grad_norm", "seed", *types):
        if key not in header or not isinstance(header[key], types.get(key, object)):
            raise ValueError(f"state['header'] has no {key!r} that makes sense, {must_be}")
    return header


def _require_same(what: str, saved: Any, own: Any) -> None:
    if saved != own:
        raise ValueError(f"{what} was {saved!r} when the state was saved, must be {own!r} as here")


def _check_tensors(saved: Sequence[Any], opt: Optimizer) -> list[str]:
    """Return the names in the order in which they were saved; any order will do."""
    own = {
        tensor.name: _description(tensor, g)
        for g, group in enumerate(opt.param_groups)
        for tensor in group.tensors
    }
    names: list[str] = []
    for i, description in enumerate(saved):
        name = description.get("name") if isinstance(description, dict) else None
        if not isinstance(name, str) or name in names:
            raise ValueError(f"header['tensors'][{i}] must have a name of its own, has {name!r}")
        names.append(name)
    _require_keys("params[{!r}]", names, own)
    for description in saved:
        name = description["name"]
        for what, value in own[name].items():
            _require_same(f"{what} of params[{name!r}]", description.get(what), value)
    return names


def _check_arrays(arrays: Mapping[str, Any], own: Mapping[str, Array]) -> None:
    _require_keys("{!r}", [key for key in arrays if key != "header"], own)
    for key, array in own.items():
        given = arrays[key]
        if not isinstance(given, np.ndarray):
            raise TypeError(f"state[{key!r}] is a {type(given).__name__}, must be a numpy.ndarray")
        if given.dtype != array.dtype:
            raise TypeError(f"state[{key!r}] has dtype {given.dtype}, must be {array.dtype}")
        if given.shape != array.shape:
            raise ValueError(f"state[{key!r}] has shape {given.shape}, must be {array.shape}")


def _require_keys(shown: str, given: Iterable[str], own: Iterable[str]) -> None:
    """Raise an error that tells both, for a renamed key is missing and unknown at once."""

    def listed(keys: set[str]) -> str:
        first = ", ".join(shown.format(key) for key in sorted(keys)[:5])
        return f"{first} and {len(keys) - 5} more" if len(keys) > 5 else first

    missing, unknown = set(own) - set(given), set(given) - set(own)
    parts = [f"has no {listed(missing)}"] if missing else []
    parts += [f"has {listed(unknown)}"] if unknown else []
    if parts:
        raise ValueError(f"state {' and '.join(parts)}, must have this optimizer's and no others")
