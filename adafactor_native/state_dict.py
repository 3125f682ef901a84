"""An optimizer's state as a flat dict of arrays: written, checked, and read back bit for bit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from adafactor_native import hyperparameters as hyper
from adafactor_native._runtime import _core
from adafactor_native.convention import current_name
from adafactor_native.elastic import (
    LoadReport,
    Rename,
    checked_keep,
    convert_storage,
    keeping,
    matching,
    renamed,
)
from adafactor_native.flat_state import (
    header_array,
    read_state,
    require_keys,
    require_same,
    staged_arrays,
    steps,
)
from adafactor_native.following import rounded
from adafactor_native.guards import RunGuard
from adafactor_native.halves import portable
from adafactor_native.param_groups import Array, Tensor
from adafactor_native.sharding.agreed_errors import together
from adafactor_native.sharding.merged_pieces import merged, whole
from adafactor_native.sharding.pieces import as_json
from adafactor_native.sharding.sharded_states import cut_to_pieces, gathered, require_one_state
from adafactor_native.state_files import StateFiles
from adafactor_native.switches import SETTLED, SWITCHES, Values, current_value
from adafactor_native.taking_over import all_at_once, fill, require_sound, require_writeable

if TYPE_CHECKING:
    from adafactor_native.model import Model
    from adafactor_native.sharding.ranks import Ranks

State = Union[Mapping[str, Array], Sequence[Mapping[str, Array]], StateFiles]

FORMAT = "adafactor_native.Optimizer"
FORMAT_OF_PIECES = f"{FORMAT}.piece"  # of what one of several ranks has
FORMAT_VERSION = 2
# Version 1, of adafactor_native 0.1, calls the convention "numpy" and the eps_mode "both" "seed".
_VERSIONS = (1, 2)
_TYPES = {
    "convention": str,
    "t": object,
    "skipped": object,
    "max_grad_norm": object,
    "seed": object,
    "groups": list,
    "tensors": list,
    "params": bool,
}

_CALLABLE = {"callable": True}  # what a header has for what cannot be written


def state_dict(opt: Model, params: bool) -> dict[str, Array]:
    """Return copies of all that an optimizer remembers; see `Optimizer.state_dict`."""
    return {
        key: np.array(array, order="C", subok=False)
        for key, array in live_arrays(opt, params).items()
    }


def gathered_state_dict(opt: Model, params: bool) -> dict[str, Array]:
    """Return on every rank copies of all that an optimizer remembers on all ranks."""
    assert opt._ranks is not None
    local = together(opt._ranks.channel, lambda: live_arrays(opt, params, as_piece=False))
    return gathered(opt._ranks, local)


def live_arrays(opt: Model, params: bool, as_piece: bool = True) -> dict[str, Array]:
    """Return all that an optimizer remembers, in the arrays where it is, and a header.

    Where there are other ranks, the header says which part of the whole these are, `as_piece`, or
    is that of the whole.
    """
    opt._require_nothing_waits("which a state does not hold")
    tensors = [(g, x) for g, group in enumerate(opt.param_groups) for x in group.tensors]
    header = {
        "convention": opt.convention,
        "t": opt.t,
        "skipped": opt.skipped,
        "max_grad_norm": opt.max_grad_norm,
        "seed": opt.seed,
        **_written_spikes(opt),
        "params": params,
        "groups": [_written(group.switches) for group in opt.param_groups],
        "tensors": [_description(tensor, g, opt) for g, tensor in tensors],
    }
    file_format = FORMAT
    if opt._ranks is not None and as_piece:
        file_format = FORMAT_OF_PIECES
        header.update(_written_pieces(opt._ranks))
    arrays = {
        f"{kind}/{tensor.name}": portable(array)
        for _, tensor in tensors
        for kind, array in _kept(tensor, params).items()
    }
    return {
        "header": header_array(file_format, FORMAT_VERSION, header),
        "t": opt.counts,
        **arrays,
    }


def load_state_dict(
    opt: Model,
    state: State,
    strict: bool = True,
    rename: Rename | None = None,
    keep: Collection[str] = (),
    convert: bool = False,
    is_ours: bool = False,
) -> LoadReport | None:
    """Take a state over, or raise and change nothing; see `Optimizer.load_state_dict`.

    The arrays of a state that is ours, because we have just read it, are not copied again.
    """
    ranks = opt._ranks
    if ranks is None:
        writes, report, _ = _load_of(opt, state, strict, rename, keep, convert, is_ours)
    else:
        ranks.channel.renew()
        writes, report, header = together(
            ranks.channel,
            lambda: _load_of(opt, state, strict, rename, keep, convert, is_ours),
        )
        require_one_state(ranks.channel, header)
        writes.append(partial(setattr, ranks.channel, "is_lost", False))
    all_at_once(writes)
    return report


def _load_of(
    opt: Model,
    state: State,
    strict: bool,
    rename: Rename | None,
    keep: Collection[str],
    convert: bool,
    is_ours: bool,
) -> tuple[list[partial[Any]], LoadReport | None, dict[str, Any]]:
    """Return the writes that take a state over, checked, what is reported of them, and the header."""
    opt._require_nothing_waits("which should not follow another state")
    kept_here = checked_keep(keep)
    arrays, header = _arrays_and_header(state)
    _complete(header["tensors"])
    _require_convention(header["convention"], opt.convention)
    if opt._ranks is not None:
        _check_names(header["tensors"])
        arrays, header["tensors"] = renamed(arrays, header["tensors"], rename)
        rename = None
        arrays = cut_to_pieces(opt._ranks, arrays, header["tensors"])
    else:
        arrays = {key: whole(array) for key, array in arrays.items()}
    header["t"] = steps("header['t']", header["t"])
    report = None
    if not strict or rename is not None or kept_here or convert:
        report = _adapt(opt, arrays, header, strict, rename, kept_here, convert)
    max_grad_norm = hyper.positive_or_none("header['max_grad_norm']", header["max_grad_norm"])
    t, skipped = header["t"], steps("header['skipped']", header["skipped"])
    seed = hyper.count("header['seed']", header["seed"])
    skip_above, norms = _read_spikes(header, opt)
    require_same(
        "the number of groups",
        len(header["groups"]),
        len(opt.param_groups),
        "; keep=['groups'] keeps those here",
    )
    written_by = header.get("package_version")
    switches = [
        group.checked(_read(given, group.switches, shown, written_by), shown + "[{!r}]")
        for g, (given, group) in enumerate(zip(header["groups"], opt.param_groups))
        for shown in [f"header['groups'][{g}]"]
    ]
    names = _check_tensors(header["tensors"], opt)

    kept = {
        f"{kind}/{tensor.name}": (kind, array)
        for tensor in opt.tensors
        for kind, array in _kept(tensor, header["params"]).items()
    }
    own = {key: portable(array) for key, (_, array) in kept.items()}
    staged = staged_arrays(arrays, {"t": opt.counts, **own}, copy=not is_ours)
    counts = staged.pop("t").tolist()
    for key, (kind, array) in kept.items():
        if opt.nonfinite != "propagate":
            require_sound(kind, f"state[{key!r}]", staged[key].view(array.dtype))
    saved = dict(zip(names, counts))
    for name, count in saved.items():
        if not 0 <= count <= t:
            raise ValueError(f"state['t'] is {count} for params[{name!r}], must be in 0 to {t}")
    copies: list[tuple[Array, Array]] = []
    for tensor in opt.tensors:
        written = _kept(tensor, header["params"])
        require_writeable(
            {
                f"params[{tensor.name!r}]"
                if kind == "param"
                else f"{kind}/{tensor.name} of this optimizer": a
                for kind, a in written.items()
            }
        )
        if header["params"] and tensor.copy is not None:
            require_writeable({f"copies[{tensor.name!r}]": tensor.copy})
            key = f"param/{tensor.name}"
            copies.append((tensor.copy, rounded(staged[key], tensor.copy.dtype)))

    writes: list[partial[Any]] = [
        partial(opt._tensors.set_counts, t, skipped, [saved[name] for name in opt.names]),
        partial(opt._tensors.set_norms, norms),
        partial(
            vars(opt).update,
            max_grad_norm=max_grad_norm,
            skip_above=skip_above,
            seed=seed,
            _params_are_new=True,
            _guard=RunGuard(),
        ),
        *(write for group, v in zip(opt.param_groups, switches) for write in group.taking(v)),
        *(fill(array, staged[key]) for key, array in own.items()),
        *(fill(copy, values) for copy, values in copies),
    ]
    return writes, report, header


def _arrays_and_header(state: State) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return arrays and header of a state, or of those that all ranks saved of themselves."""
    if isinstance(state, StateFiles):
        state = state.read()
    if isinstance(state, (list, tuple)) and state:
        types = {**_TYPES, "rank": int, "size": int, "pieces": list}
        return merged([read_state(each, FORMAT_OF_PIECES, _VERSIONS, types) for each in state])
    return read_state(state, FORMAT, _VERSIONS, _TYPES)


def _written_pieces(ranks: Ranks) -> dict[str, Any]:
    """Return what a header has of the part of the whole that this rank has."""
    return {
        "rank": ranks.channel.rank,
        "size": ranks.channel.size,
        "pieces": [as_json(shard.piece) for shard in ranks.shards.values()],
    }


def _adapt(
    opt: Model,
    arrays: dict[str, Any],
    header: dict[str, Any],
    strict: bool,
    rename: Rename | None,
    keep: frozenset[str],
    convert: bool,
) -> LoadReport | None:
    """Make a state one that fits, as far as was asked for; what does not fit is refused later."""
    _check_names(header["tensors"])
    given = arrays.get("t")
    n = len(header["tensors"])
    if not isinstance(given, np.ndarray) or given.dtype != np.int64 or given.shape != (n,):
        raise TypeError(f"state['t'] must be a numpy.ndarray of int64 and shape {(n,)}")
    adapted, header["tensors"] = renamed(arrays, header["tensors"], rename)
    arrays.clear()
    arrays.update(adapted)
    keeping(opt, header, keep, [_written(group.switches) for group in opt.param_groups])
    own = _own_descriptions(opt)
    tensors = {tensor.name: tensor for tensor in opt.tensors}
    if convert:
        for saved, group in zip(header["groups"], opt.param_groups):
            if isinstance(saved, dict) and (saved.get("beta1") is None) != (group["beta1"] is None):
                saved["beta1"] = group["beta1"]
    for description in header["tensors"]:
        mine = own.get(description["name"])
        if mine is None:
            continue
        if "groups" in keep:
            description["group"] = mine["group"]
        if keep & {"groups", "weight_decay_mask"}:
            description["decays"] = mine["decays"]
        like = all(
            description.get(key) == mine[key] for key in mine if key not in ("state", "state_dtype")
        )
        if convert and like:
            convert_storage(tensors[mine["name"]], description, arrays, header["params"])
    return None if strict else matching(opt, arrays, header, own)


def _kept(tensor: Tensor, params: bool) -> dict[str, Array]:
    return {**({"param": tensor.param} if params else {}), **tensor.state}


def _description(tensor: Tensor, group: int, opt: Model) -> dict[str, Any]:
    """Return what must be the same where a tensor's state is loaded, as JSON has it."""
    return {
        "name": tensor.name,
        "shape": list(
            tensor.param.shape if opt._ranks is None else opt._ranks.shards[tensor.name].shape
        ),
        "dtype": tensor.param.dtype.name,
        "group": group,
        "factored_axes": None if tensor.axes is None else list(tensor.axes),
        "state": list(tensor.state),
        "state_dtype": tensor.state_dtype.name,
        "decays": tensor.decays,
    }


def _require_convention(saved: str, own: str) -> None:
    name = current_name(saved)
    if name != own:
        default = ", the default before version 0.2" if name == "numpy" else ""
        raise ValueError(
            f"convention was {name!r} when the state was saved, must be {own!r} as here: make the "
            f"optimizer with convention={name!r}{default}"
        )


def _written(switches: Values) -> Values:
    return {
        name: _CALLABLE if callable(value) else value
        for name, value in switches.items()
        if name not in SETTLED
    }


def _written_spikes(opt: Model) -> dict[str, Any]:
    """Return what a header has of the rule for spikes, where there is one."""
    if opt.skip_above is None:
        return {}
    return {"skip_above": opt.skip_above, "norms": opt._tensors.norms()}


def _read_spikes(header: Mapping[str, Any], opt: Model) -> tuple[float | None, list[float]]:
    """Return the rule for spikes and its norms; the rule is ours where the state has none."""
    if "skip_above" not in header:
        return opt.skip_above, []
    norms = header.get("norms", [])
    if not isinstance(norms, list) or len(norms) > _core.most_norms:
        raise ValueError(f"header['norms'] must be a list of at most {_core.most_norms} numbers")
    shown = "header['norms'][{}]"
    return (
        hyper.above_one_or_none("header['skip_above']", header["skip_above"]),
        [hyper.non_negative(shown.format(i), norm) for i, norm in enumerate(norms)],
    )


def _read(given: Any, own: Values, shown: str, written_by: Any) -> Values:
    """Return the switches that were written, without those that stay the optimizer's own.

    A version that did not know a switch stepped as its default does.
    """
    expected = [name for name in own if name not in SETTLED]
    if isinstance(given, dict) and written_by != _core.version:
        unknown_then = [name for name in expected if name not in given]
        given = {**given, **{name: SWITCHES[name].default for name in unknown_then}}
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
            values[name] = current_value(name, value)
    return values


def _check_tensors(saved: Sequence[Any], opt: Model) -> list[str]:
    """Return the names in the order in which they were saved; any order will do."""
    own = _own_descriptions(opt)
    names = _check_names(saved)
    remedy = "; rename= gives tensors other names, strict=False loads those that match"
    require_keys("params[{!r}]", names, own, remedy)
    for description in saved:
        name = description["name"]
        for what, value in own[name].items():
            is_storage = what in ("state", "state_dtype")
            remedy = "; convert=True changes how it is stored" if is_storage else ""
            require_same(f"{what} of params[{name!r}]", description.get(what), value, remedy)
    return names


def _complete(saved: Sequence[Any]) -> None:
    """Add to descriptions what was always so before there was a choice."""
    for description in saved:
        if isinstance(description, dict):
            description.setdefault("state_dtype", "float64")


def _own_descriptions(opt: Model) -> dict[str, dict[str, Any]]:
    return {
        tensor.name: _description(tensor, g, opt)
        for g, group in enumerate(opt.param_groups)
        for tensor in group.tensors
    }


def _check_names(saved: Sequence[Any]) -> list[str]:
    names: list[str] = []
    seen: set[str] = set()
    for i, description in enumerate(saved):
        name = description.get("name") if isinstance(description, dict) else None
        if not isinstance(name, str) or name in seen:
            raise ValueError(f"header['tensors'][{i}] must have a name of its own, has {name!r}")
        names.append(name)
        seen.add(name)
    return names
