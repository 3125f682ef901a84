"""States loaded whole: torch casts them to the parameter's dtype, which they must not be here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from adafactor_native.torch import state

if TYPE_CHECKING:
    from adafactor_native.torch.optimizer import NativeOptimizer


def load(
    opt: NativeOptimizer, load_by_torch: Callable[[Any], None], state_dict: dict[str, Any]
) -> None:
    """Load as torch does, its hooks in their order, with the state as it was saved.

    What the last hook before the load returns is checked and kept, and torch is given empty states in
    its place; before the first hook behind the load these are filled.
    """
    uncast: dict[torch.Tensor, dict[Any, Any]] = {}

    def keep(_: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        ids, found = _uncast(opt, given)
        uncast.update(found)
        states = given["state"].items()
        return {**given, "state": {key: {} if key in ids else mine for key, mine in states}}

    def refill(_: Any) -> None:
        for param, values in uncast.items():
            opt.state[param] = values

    before = opt.register_load_state_dict_pre_hook(keep)
    behind = opt.register_load_state_dict_post_hook(refill, prepend=True)
    try:
        load_by_torch(state_dict)
    finally:
        before.remove()
        behind.remove()


def _uncast(
    opt: NativeOptimizer, given: Mapping[str, Any]
) -> tuple[set[Any], dict[torch.Tensor, dict[Any, Any]]]:
    """Return the state of each parameter in this machine's memory: a copy, as a step can use it.

    Returns
    -------
    ids : set
        What the parameters are called there.
    states : dict
    """
    groups = given["param_groups"]
    sizes = [len(group["params"]) for group in groups]
    if sizes != [len(group["params"]) for group in opt.param_groups]:
        return set(), {}  # which torch refuses
    ids: set[Any] = set()
    found: dict[torch.Tensor, dict[Any, Any]] = {}
    names = opt._dialect.names
    position = 0
    for index, (theirs, ours) in enumerate(zip(groups, opt.param_groups)):
        for key, param in zip(theirs["params"], ours["params"]):
            mine = given["state"].get(key)
            if isinstance(mine, Mapping) and param.device.type == "cpu":
                copied = {name: _copied(value) for name, value in mine.items()}
                if copied and not param.is_complex():
                    # What decides about the arrays of a state is the optimizer's, not the file's.
                    kept = opt._settings(index, ours).kept
                    shown = f"params[{position}]"
                    if opt._lies_in_pieces(position, param):
                        cut = opt._sharded_steps().cuts.state_of(names, kept, position, param)
                        copied |= cut.taken_over(copied)
                    else:
                        copied |= state.taken_over(copied, names, kept, shown, param)
                found[param] = copied
                ids.add(key)
            position += 1
    return ids, found


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)
