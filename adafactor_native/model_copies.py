"""An optimizer as a pickle, and copies of it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from adafactor_native.convention import convention_of
from adafactor_native.hyperparameters import checked
from adafactor_native.model import Model
from adafactor_native.param_groups import ParamGroup, Tensor, writeable
from adafactor_native.switches import SWITCHES, check_switches, current_value
from adafactor_native.taking_over import require_sound

if TYPE_CHECKING:
    from typing_extensions import Self


class ModelCopies(Model):
    """A model that can be pickled and copied, with its parameters."""

    def __getstate__(self) -> dict[str, Any]:
        _require_picklable(self._defaults, "{}")
        for g, group in enumerate(self._groups):
            _require_picklable(group.switches, f"param_groups[{g}][{{!r}}]")
        return self._all_of_it()

    def _all_of_it(self) -> dict[str, Any]:
        """Return all that `__setstate__` needs."""
        self._require_one_process(
            "a pickle or a copy", "opt.state_dict(gather=True) and a new optimizer go on elsewhere"
        )
        self._require_no_open_step("which a copy does not have")
        self._require_none_measured("which a copy does not have")
        made_anew = ("_tensors", "_cell", "_names", "_groups", "_convention")
        own = {k: v for k, v in vars(self).items() if k not in made_anew}
        groups = [(group.tensors, group.switches) for group in self._groups]
        tensors = self._tensors
        counts, norms = tensors.alone(
            lambda: ((self.t, self.skipped, self.counts), tensors.norms())
        )
        return {
            **own,
            "convention": self.convention,
            "groups": groups,
            "counts": counts,
            "norms": norms,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = dict(state)
        convention, groups, counts = (own.pop(k) for k in ("convention", "groups", "counts"))
        norms = own.pop("norms", [])  # version 0.1 had none
        self._start()
        self._convention = convention_of(convention)
        vars(self).update({**own, **checked(type(self), own)})
        self._defaults = _current(self._defaults)
        read = [
            ParamGroup(
                [writeable(tensor) for tensor in tensors],
                check_switches(_known_then(switches), {}),
                self._convention,
                self._cell,
            )
            for tensors, switches in groups
        ]
        self._require_sound(read)
        self._add_groups(read)
        self._tensors.set_counts(*counts)
        self._tensors.set_norms(norms)

    def _require_sound(self, groups: Iterable[ParamGroup]) -> None:
        """Raise a ValueError if tensors share a name, or hold numbers that no step leaves."""
        names: set[str] = set()
        for group in groups:
            for tensor in group.tensors:
                self._require_sound_tensor(tensor, group, names)

    def _require_sound_tensor(self, tensor: Tensor, group: ParamGroup, names: set[str]) -> None:
        if tensor.state_dtype != group["state_dtype"]:
            raise ValueError(
                f"the state of params[{tensor.name!r}] has dtype {tensor.state_dtype}, must be "
                f"{group['state_dtype']} as state_dtype of its group says"
            )
        if tensor.name in names:
            raise ValueError(f"params[{tensor.name!r}] is there twice, names must be unique")
        names.add(tensor.name)
        if self.nonfinite != "propagate":
            for kind, array in tensor.state.items():
                require_sound(kind, f"{kind} of params[{tensor.name!r}]", array)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a copy, callables and all: they need not be picklable for that."""
        new = object.__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self._all_of_it(), memo))
        return new

    def __copy__(self) -> Self:
        """Return a copy with parameters and state of its own: two must not write to one array."""
        return copy.deepcopy(self)


def _require_picklable(values: Mapping[str, Any], shown: str) -> None:
    """Raise an error that names the callable that pickle cannot write, and what to do."""
    for name, value in values.items():
        if not callable(value):
            continue
        try:
            pickle.dumps(value)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise pickle.PicklingError(
                f"{shown.format(name)} is {value!r}, must be a function of a module or an object of "
                f"a class, to be pickled with its optimizer ({error}); opt.state_dict() needs no "
                "pickle"
            ) from None


def _known_then(switches: Mapping[str, Any]) -> dict[str, Any]:
    """Return all switches: a version that did not know one stepped as its default does."""
    return {**{name: switch.default for name, switch in SWITCHES.items()}, **_current(switches)}


def _current(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return hyper-parameters as an older version pickled them by the words of this one."""
    return {name: current_value(name, value) for name, value in values.items()}
