"""The state dicts of torch.optim.Adafactor and of transformers.Adafactor, which is a torch optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adafactor_native import hyperparameters as hyper
from adafactor_native.conventions import CONVENTIONS
from adafactor_native.convert.arrays import (
    Incoming,
    MakeArray,
    add_incoming,
    array_maker,
    count_of,
    dtype_there,
    exchanged,
    require_one_process,
    take_over,
)
from adafactor_native.optimizer import Optimizer
from adafactor_native.param_groups import Array, ParamGroup, Tensor
from adafactor_native.rules import rates_at
from adafactor_native.switches import SETTLED, Values


def load_torch(
    opt: Optimizer, state_dict: Mapping[str, Any], names: Sequence[str] | None = None
) -> None:
    """Continue a run of ``torch.optim.Adafactor``.

    Parameters
    ----------
    opt : Optimizer
        That of the same parameters, with ``convention="torch"`` and the run's hyper-parameters.
    state_dict : mapping
        What ``state_dict()`` returns there: "state", by position ("step", and "row_var" and
        "col_var", or "variance"), and "param_groups". A parameter without a state has taken no
        step. Keys may be strings, as JSON makes them, and arrays lists. Where they are names they
        must be ours, and go before the order.
    names : sequence of str or None
        The names here of the parameters there, in the order of its groups. None: those of `opt`, in
        their order.

    Raises
    ------
    TypeError, ValueError
        If something is missing, unknown, of the wrong shape, or factored over other axes. The
        message names it, and nothing is changed.

    Examples
    --------
    >>> import numpy as np
    >>> from adafactor_native import Optimizer, convert
    >>> state_dict = {
    ...     "state": {0: {"step": 3.0, "row_var": np.ones((2, 1)), "col_var": np.ones((1, 3))}},
    ...     "param_groups": [{"params": [0], "lr": 0.1}],
    ... }
    >>> opt = Optimizer({"w": np.ones((2, 3))}, "torch", lr=0.1)
    >>> convert.load_torch(opt, state_dict)
    >>> opt.t, opt.state["w"]["exp_row"]
    (3, array([1., 1.]))
    """
    _load(opt, state_dict, names, _TORCH)


def to_torch(
    opt: Optimizer, array: MakeArray | None = None, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return a state that ``torch.optim.Adafactor.load_state_dict`` takes.

    Parameters
    ----------
    opt : Optimizer
        With ``convention="torch"``, and no switch that is not an argument there.
    array : callable or None
        Makes their arrays of ours; theirs has to be ``torch.as_tensor``.
    names : sequence of str or None
        As for `load_torch`.

    Returns
    -------
    dict
        "state" and "param_groups", with the hyper-parameters as they are at the next step. The
        groups there must be as here.

    Raises
    ------
    ValueError
        If the convention is another, or a switch or an axis is none of theirs.
    """
    return _written(opt, array, names, _TORCH)


def load_huggingface(
    opt: Optimizer, state_dict: Mapping[str, Any], names: Sequence[str] | None = None
) -> None:
    """Continue a run of ``transformers.Adafactor``.

    Parameters, errors: as those of `load_torch`, with ``convention="huggingface"`` and the state's
    "step", "exp_avg_sq_row" and "exp_avg_sq_col" or "exp_avg_sq", and with beta1 "exp_avg".
    """
    _load(opt, state_dict, names, _HUGGINGFACE)


def to_huggingface(
    opt: Optimizer, array: MakeArray | None = None, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return a state that ``transformers.Adafactor.load_state_dict`` takes; see `to_torch`."""
    return _written(opt, array, names, _HUGGINGFACE)


@dataclass(frozen=True)
class _Library:
    convention: str
    row: str
    col: str
    full: str
    moment: str | None
    keeps_axes: bool  # the axis a mean was taken over stays, of length 1
    others: tuple[str, ...]  # keys of a state that we do not need
    arguments: Callable[[Values], dict[str, Any]]  # of a group


_TORCH = _Library(
    convention="torch",
    row="row_var",
    col="col_var",
    full="variance",
    moment=None,
    keeps_axes=True,
    others=(),
    arguments=lambda switches: {
        "lr": switches["lr"],
        "beta2_decay": switches["decay_rate"],
        "eps": (switches["eps"], switches["eps_scale"]),
        "d": switches["clip_threshold"],
        "weight_decay": switches["weight_decay"],
        "foreach": None,
        "maximize": switches["maximize"],
    },
)
_HUGGINGFACE = _Library(
    convention="huggingface",
    row="exp_avg_sq_row",
    col="exp_avg_sq_col",
    full="exp_avg_sq",
    moment="exp_avg",
    keeps_axes=False,
    others=("RMS",),
    arguments=lambda switches: {
        "lr": None if switches["relative_step"] else switches["lr"],
        "eps": (switches["eps"], switches["eps_scale"]),
        **{
            name: switches[name]
            for name in (
                *("clip_threshold", "decay_rate", "beta1", "weight_decay"),
                *("scale_parameter", "relative_step", "warmup_init"),
            )
        },
    },
)


def _load(opt: Optimizer, state_dict: Any, names: Sequence[str] | None, library: _Library) -> None:
    require_one_process(opt)
    _require_convention(opt, library)
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError("state_dict must be a mapping with 'state' and 'param_groups'")
    positions = _positions(state_dict["param_groups"])
    if len(positions) != len(opt.names):
        raise ValueError(f"state_dict has {len(positions)} params, must have {len(opt.names)}")
    states = _states(state_dict["state"], positions)
    tensors = {tensor.name: tensor for tensor in opt.tensors}
    counts = {}
    incoming: Incoming = []
    for name, position in zip(_names_of(opt, names, positions), positions):
        tensor = tensors[name]
        _require_last_two(tensor)
        theirs = states.get(position) or {}
        shown = f"state_dict['state'][{position!r}]"
        if not isinstance(theirs, Mapping):
            raise TypeError(f"{shown} is a {type(theirs).__name__}, must be a mapping")
        if not theirs:
            counts[name] = 0
            incoming += [(own, np.zeros_like(own)) for own in exchanged(tensor).values()]
            continue
        arrays = _as_there(tensor, library)
        if set(theirs) - set(library.others) != {"step", *arrays}:
            raise ValueError(
                f"{shown} has {', '.join(map(repr, theirs))}, must have "
                f"{', '.join(map(repr, ('step', *arrays)))} for params[{name!r}]"
            )
        counts[name] = count_of(f"{shown}['step']", theirs["step"])
        for kind, (key, values) in zip(exchanged(tensor), arrays.items()):
            add_incoming(
                incoming,
                values,
                theirs[key],
                f"{shown}[{key!r}]",
                kind,
                finite=opt.nonfinite != "propagate",
            )
    t = max(counts.values(), default=0)
    take_over(opt, incoming, t, [counts[name] for name in opt.names])


def _written(
    opt: Optimizer, array: MakeArray | None, names: Sequence[str] | None, library: _Library
) -> dict[str, Any]:
    require_one_process(opt)
    _require_convention(opt, library)
    make = array_maker(array)
    positions = {name: i for i, name in enumerate(_names(opt, names))}
    counts = dict(zip(opt.names, opt.counts.tolist()))
    state: dict[int, dict[str, Any]] = {}
    for tensor in opt.tensors:
        _require_last_two(tensor)
        t = counts[tensor.name]
        if t == 0:
            continue
        theirs: dict[str, Any] = {"step": t}
        if library.keeps_axes:
            theirs["step"] = make(np.array(t, np.float32))
        for key, values in _as_there(tensor, library).items():
            theirs[key] = make(np.array(values, dtype_there(tensor.param), order="C"))
        if "RMS" in library.others:
            theirs["RMS"] = float(np.sqrt(np.mean(np.square(np.asarray(tensor.param, np.float64)))))
        state[positions[tensor.name]] = theirs
    groups = [
        {
            **_arguments_of(group, opt.t + 1, library),
            "params": sorted(positions[name] for name in group["names"]),
        }
        for group in opt.param_groups
    ]
    return {"state": state, "param_groups": groups}


def _arguments_of(group: ParamGroup, t: int, library: _Library) -> dict[str, Any]:
    """Return a group's arguments there, with what depends on t as it is at t."""
    lr, _ = rates_at(group.switches, t)
    weight_decay = hyper.rate_at("weight_decay", group["weight_decay"], t)
    switches = {**group.switches, "lr": lr, "schedule": None, "weight_decay": weight_decay}
    arguments = library.arguments(switches)
    for name, value in CONVENTIONS[library.convention].switches(("{}", arguments)).items():
        settled = name in SETTLED and name != "weight_decay_mask"
        if switches[name] != value and not settled:
            raise ValueError(
                f"{name} is {switches[name]!r}, must be {value!r} in a state for "
                f"{library.convention}, which cannot say it"
            )
    return arguments


def _as_there(tensor: Tensor, library: _Library) -> dict[str, Array]:
    """Return views of a tensor's state by their keys."""
    if tensor.m is not None and library.moment is None:
        raise ValueError(
            f"params[{tensor.name!r}] has a first moment, must have none as in {library.convention}"
        )
    views = exchanged(tensor)
    if tensor.axes is not None and library.keeps_axes:
        views["exp_row"] = np.expand_dims(views["exp_row"], -1)
        views["exp_col"] = np.expand_dims(views["exp_col"], -2)
    keys = {"exp_row": library.row, "exp_col": library.col, "v": library.full, "m": library.moment}
    return {str(keys[kind]): view for kind, view in views.items()}


def _require_convention(opt: Optimizer, library: _Library) -> None:
    if opt.convention != library.convention:
        raise ValueError(
            f"convention is {opt.convention!r}, must be {library.convention!r}: make the optimizer "
            f"with convention={library.convention!r}"
        )


def _positions(groups: Any) -> list[Any]:
    """Return the keys of all params in the groups' order, a number that became a str as an int."""
    if isinstance(groups, (str, bytes, Mapping)) or not isinstance(groups, Sequence):
        raise TypeError("state_dict['param_groups'] must be a list of mappings with 'params'")
    positions: list[Any] = []
    seen: set[Any] = set()
    for g, group in enumerate(groups):
        params = group.get("params") if isinstance(group, Mapping) else None
        if isinstance(params, (str, bytes)) or not isinstance(params, Sequence):
            raise TypeError(f"state_dict['param_groups'][{g}] must be a mapping with 'params'")
        for key in params:
            if not isinstance(key, (int, str, np.integer)):
                raise TypeError(
                    f"state_dict['param_groups'][{g}]['params'] has a {type(key).__name__}, must "
                    "have ints, or the names of parameters"
                )
            position = _position(key)
            if position in seen:
                raise ValueError(
                    f"state_dict['param_groups'] has {position!r} twice, must have once"
                )
            positions.append(position)
            seen.add(position)
    return positions


def _position(key: Any) -> Any:
    """Return a position as an int, for JSON makes its digits a str; a name as it is."""
    is_number = isinstance(key, (int, np.integer)) or (
        isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 20
    )
    return int(key) if is_number else key


def _states(state: Any, positions: Sequence[Any]) -> dict[Any, Any]:
    if not isinstance(state, Mapping):
        raise TypeError(f"state_dict['state'] is a {type(state).__name__}, must be a mapping")
    states: dict[Any, Any] = {}
    known = set(positions)
    for key, value in state.items():
        position = _position(key)
        if position not in known:
            raise ValueError(
                f"state_dict['state'] has {key!r}, which is none of the 'params' of its groups, must "
                "have theirs only"
            )
        if position in states:
            raise ValueError(
                f"state_dict['state'] has {key!r} twice, as int and str, must have once"
            )
        states[position] = value
    return states


def _names_of(
    opt: Optimizer, names: Sequence[str] | None, positions: Sequence[Any]
) -> Sequence[str]:
    """Return our names of their parameters: as given, as theirs if they are names, or in order."""
    if names is None and any(isinstance(position, str) for position in positions):
        if {str(position) for position in positions} != set(opt.names):
            raise ValueError(
                f"state_dict has the parameters {', '.join(map(repr, positions))}, and names is None, "
                "must be all of our names in their order"
            )
        return [str(position) for position in positions]
    return _names(opt, names)


def _require_last_two(tensor: Tensor) -> None:
    ndim = tensor.param.ndim
    if tensor.axes != (None if ndim < 2 else (ndim - 2, ndim - 1)):
        raise ValueError(
            f"params[{tensor.name!r}] is factored over the axes {tensor.axes and tuple(tensor.axes)}, "
            "must be over its last two if it has two, as there"
        )


def _names(opt: Optimizer, names: Sequence[str] | None) -> Sequence[str]:
    if names is None:
        return opt.names
    if sorted(names) != sorted(opt.names):
        raise ValueError(f"names is {list(names)}, must be all of {list(opt.names)} in some order")
    return names
