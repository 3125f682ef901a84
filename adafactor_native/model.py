"""The tensors of a model in groups, and all that an optimizer remembers of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from adafactor_native import hyperparameters as hyper
from adafactor_native._runtime import _core
from adafactor_native.accumulation import Accumulated
from adafactor_native.convention import Convention, switch_elsewhere
from adafactor_native.guards import RunGuard
from adafactor_native.hyperparameters import HyperParameter
from adafactor_native.param_groups import Array, ParamGroup, PlanCell, Tensor, new_groups
from adafactor_native.read_only import ReadOnlyDict
from adafactor_native.report import StateMemory
from adafactor_native.suggestions import KnownAttributes
from adafactor_native.switches import SWITCHES

_ATOMIC = ("all", "tensor")


class Model(KnownAttributes):
    """What all parts of `Optimizer` share: groups of tensors, their counts, and the settings.

    `Optimizer` says what each attribute is.
    """

    nonfinite = HyperParameter(hyper.nonfinite_policy)
    atomic = HyperParameter(hyper.one_of(*_ATOMIC))
    max_grad_norm = HyperParameter(hyper.positive_or_none)
    max_skipped = HyperParameter(hyper.at_least_one_or_none)
    skip_above = HyperParameter(hyper.above_one_or_none)
    num_threads = HyperParameter(hyper.threads_or_none)
    seed = HyperParameter(hyper.count)
    _convention: Convention
    _defaults: dict[str, Any]
    _carry_param_rms: bool
    _accumulated: Accumulated

    @property
    def convention(self) -> str:
        """Whose arguments, defaults and formulas hold."""
        return self._convention.name

    @property
    def carry_param_rms(self) -> bool:
        """Whether RMS(param) is taken over from the step before."""
        return self._carry_param_rms

    @property
    def param_groups(self) -> tuple[ParamGroup, ...]:
        """Mappings of hyper-parameters: ``opt.param_groups[0]["lr"] = 0.1`` holds from the next step."""
        return self._groups

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, in the order of all arrays of a report."""
        return self._names

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The parameters with their state and factored axes, in the order of `names`."""
        self._tensors.state_was_seen()
        return self._all_tensors()

    def _all_tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for group in self._groups for tensor in group.tensors)

    @property
    def params(self) -> dict[str, Array]:
        """The parameters themselves, by name; write to the arrays, then call `params_changed`."""
        return ReadOnlyDict(
            {tensor.name: tensor.param for tensor in self._all_tensors()},
            "opt.params cannot be assigned to: write into the array, opt.params[name][...] = values, "
            "then call opt.params_changed()",
        )

    @property
    def state(self) -> dict[str, dict[str, Array]]:
        """The arrays of the state themselves, by name and kind; write to the arrays only."""
        instead = (
            "opt.state cannot be assigned to: write into the array, "
            "opt.state[name][kind][...] = values, or use opt.load_state_dict(state)"
        )
        states = {tensor.name: ReadOnlyDict(tensor.state, instead) for tensor in self.tensors}
        return ReadOnlyDict(cast("dict[str, dict[str, Array]]", states), instead)

    @property
    def t(self) -> int:
        """Steps taken."""
        return self._tensors.t

    @property
    def skipped(self) -> int:
        """Steps left out with ``nonfinite="skip"``."""
        return self._tensors.skipped

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Steps that each tensor has taken, int64, shape (n,); read-only, a load sets them."""
        counts = self._tensors.counts()
        counts.flags.writeable = False
        return counts

    @property
    def memory(self) -> StateMemory:
        """Bytes of state, by kind, tensor and element."""
        by_tensor = {
            name: {kind: array.nbytes for kind, array in state.items()}
            for name, state in ((x.name, x.state) for x in self._all_tensors())
        }
        for name, array in self._accumulated.sums.items():
            by_tensor[name]["sum"] = array.nbytes
        return StateMemory(by_tensor, sum(param.size for param in self.params.values()))

    def _start(self) -> None:
        """Begin as a model without tensors."""
        self._cell = PlanCell()
        self._tensors = _core.Tensors()
        self._groups: tuple[ParamGroup, ...] = ()
        self._names: tuple[str, ...] = ()
        self._guard = RunGuard()
        self._accumulated = Accumulated()
        self.max_skipped = None
        self.skip_above = None
        self._params_are_new = False  # whether the next step looks if masters are still theirs
        self._removed: frozenset[str] = frozenset()  # names of tensors that were here

    def _new_groups(self, given: Sequence[tuple[str, Mapping[str, Any]]]) -> list[ParamGroup]:
        return new_groups(
            given, self._convention, self._defaults, self._names, self._cell, self._removed
        )

    def _add_groups(self, groups: Iterable[ParamGroup]) -> None:
        """Take these groups behind the old ones; on an error change nothing."""
        added = tuple(groups)
        self._tensors.add([group.tensors for group in added])
        self._groups += added
        self._names += tuple(tensor.name for group in added for tensor in group.tensors)
        self._params_are_new = True
        self._cell.plan = None

    def _set_counts(self, t: int, skipped: int, counts: Sequence[int]) -> None:
        self._tensors.set_counts(t, skipped, counts)

    def _hyper_parameter_changed(self) -> None:
        self._cell.plan = None

    def _unknown_attribute(self, name: str) -> str:
        switch = name if name in SWITCHES else switch_elsewhere(name)
        if switch is None:
            return super()._unknown_attribute(name)
        return (
            f"{type(self).__name__} has no attribute {name!r}: hyper-parameters are each group's, "
            f"opt.param_groups[0][{switch!r}]"
        )

    def __repr__(self) -> str:
        elements = sum(param.size for param in self.params.values())
        return (
            f"<{type(self).__name__}(convention={self.convention!r}), groups={len(self._groups)}, "
            f"tensors={len(self._names)}, elements={elements}, t={self.t}>"
        )
