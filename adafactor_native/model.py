"""The tensors of a model in groups, and all that an optimizer remembers of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from adafactor_native import hyperparameters as hyper
from adafactor_native._runtime import _core
from adafactor_native.accumulation import Accumulated
from adafactor_native.convention import Convention, switch_elsewhere
from adafactor_native.following import followed
from adafactor_native.guards import RunGuard
from adafactor_native.hyperparameters import HyperParameter
from adafactor_native.param_groups import Array, ParamGroup, PlanCell, Tensor, new_groups
from adafactor_native.read_only import ReadOnlyDict
from adafactor_native.report import StateMemory
from adafactor_native.rules import are_constant, rates_at
from adafactor_native.suggestions import KnownAttributes
from adafactor_native.switches import SWITCHES

if TYPE_CHECKING:
    from adafactor_native.sharding.ranks import Ranks

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
    _sums: str

    @property
    def convention(self) -> str:
        """Whose arguments, defaults and formulas hold."""
        return self._convention.name

    @property
    def carry_param_rms(self) -> bool:
        """Whether RMS(param) is taken over from the step before."""
        return self._carry_param_rms

    @property
    def sums(self) -> str:
        """How sums over the elements of a tensor are added up, "fast" or "exact"."""
        return self._sums

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
        """Steps left out with ``nonfinite="skip"`` or by `skip_above`."""
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
        for name, n_bytes in zip(self._names, self._tensors.measured()):
            if n_bytes is not None:
                by_tensor[name]["measured"] = n_bytes
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
        self._sums = "fast"
        self._params_are_new = False  # whether the next step looks if masters are still theirs
        self._removed: frozenset[str] = frozenset()  # names of tensors that were here
        self._ranks: Ranks | None = None  # the other ranks, if the model is spread over several

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

    def _followed(self, position: int) -> Array | None:
        """Return what one tensor's master would be if it followed its param, or None where it does."""
        for group in self._groups:
            if position < len(group.tensors):
                return followed(group.tensors[position], group["rounding"] == "stochastic")
            position -= len(group.tensors)
        raise IndexError("no tensor has this position")

    def _new_plan(self) -> _core.Plan:
        """Return all that a step takes but gradients, kept until a change if it does not depend on t."""
        rates = [rates_at(group.switches, self.t + 1) for group in self._groups]
        plan = self._plan_with(rates)
        if all(are_constant(group.switches) for group in self._groups):
            self._cell.plan = plan
        self._cell.lr = tuple(lr for lr, _ in rates)
        return plan

    def _plan_with(self, rates: Sequence[tuple[float, float]]) -> _core.Plan:
        """Return a plan with these lr and decays of the groups."""
        return _core.Plan(
            rules=[group.rule for group in self._groups],
            lr=[lr for lr, _ in rates],
            decay=[decay for _, decay in rates],
            nonfinite=_core.NonFinite[self.nonfinite],
            all_or_none=self.atomic == "all",
            max_grad_norm=inf if self.max_grad_norm is None else self.max_grad_norm,
            skip_above=inf if self.skip_above is None else self.skip_above,
            num_threads=self.num_threads or 0,
            carry_param_rms=self._carry_param_rms,
            seed=self.seed,
        )

    def _plan_of_open_step(self) -> _core.Plan | None:
        """Return what the step that `step_tensor` has begun goes by, or None where none is open."""
        return self._cell.of_open_step if self._tensors.is_open else None

    def _taken(self) -> Collection[str]:
        """Return the tensors of which the next step has a gradient by measure or step_tensor."""
        tensors = self._tensors
        if not tensors.waits:
            return ()
        stepped = tensors.given() if tensors.is_open else [False] * len(self._names)
        each = zip(self._names, tensors.measured(), stepped)
        return {name for name, measured, was_given in each if measured is not None or was_given}

    def _require_nothing_waits(self, doing: str) -> None:
        """Raise a ValueError if the next step has gradients already, which `doing` would lose."""
        self._accumulated.require_none(doing)
        self._require_no_open_step(doing)
        self._require_none_measured(doing)

    def _require_one_process(
        self,
        what: str,
        instead: str = "make the optimizer anew and load its state, opt.state_dict(gather=True)",
    ) -> None:
        """Raise a ValueError where the model is spread over ranks."""
        if self._ranks is not None:
            given = "comm" if self._sums == "fast" else "comm or sums='exact'"
            raise ValueError(f"{what} is not possible with {given}: {instead}")

    def _require_no_open_step(self, doing: str) -> None:
        if self._tensors.is_open:
            raise ValueError(
                f"a step that opt.step_tensor has begun is open, {doing}: end it by opt.step()"
            )

    def _require_none_measured(self, doing: str) -> None:
        if self._tensors.has_measured:
            n = sum(n_bytes is not None for n_bytes in self._tensors.measured())
            raise ValueError(
                f"{n} measured gradients wait for a step, {doing}: take it by opt.step(), or drop them "
                "by opt.discard_measured()"
            )

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
