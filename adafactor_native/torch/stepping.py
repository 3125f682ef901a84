"""One step of some of an optimizer's parameters: found, made ready where they must be, stepped."""

from __future__ import annotations

import enum
import inspect
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from adafactor_native.guards import SkippedStepWarning
from adafactor_native.rules import are_constant
from adafactor_native.torch import others, state
from adafactor_native.torch.masters import Following, count_in
from adafactor_native.torch.reading import increment_versions
from adafactor_native.torch.settings import is_schedule

if TYPE_CHECKING:
    from adafactor_native.torch.measured_backward import MeasuredBackward
    from adafactor_native.torch.optimizer import NativeOptimizer

_INSIDE = ("adafactor_native", "torch")

Places = Sequence[tuple[int, torch.Tensor]]  # of parameters: the part, and which


class Part(NamedTuple):
    """Parameters of one group that take a step.

    Attributes
    ----------
    place : int
        The group's index.
    group : dict
    params : list of Tensor
    first : int
        The position of the first, among all of the optimizer's.
    names : list of (str or int), or None
        Theirs; an int is a position among all.
    grads : list of (Tensor or None), or None
        Their gradients, where they are not those that they have.
    """

    place: int
    group: dict[str, Any]
    params: list[torch.Tensor]
    first: int
    names: Sequence[str | int] | None
    grads: list[torch.Tensor | None] | None = None

    def gradients(self) -> list[torch.Tensor | None]:
        return [p.grad for p in self.params] if self.grads is None else self.grads

    def name_of(self, k: int) -> str | int:
        """Return what the k-th is called: its name, or else its position among all."""
        return self.first + k if self.names is None else self.names[k]


def all_parts(opt: NativeOptimizer) -> list[Part]:
    parts, first = [], 0
    for index, group in enumerate(opt.param_groups):
        params = group["params"]
        parts.append(Part(index, group, params, first, group.get("param_names")))
        first += len(params)
    return parts


class Ready(enum.Enum):
    """Where a step may be taken that was made ready."""

    anywhere = enum.auto()
    only_here = enum.auto()  # in the caller's thread: not all tensors are plain
    no_step = enum.auto()  # its state was all that was asked for


class StepCall:
    """A step that is to be taken, with the values that the groups had when it was asked for.

    Parameters
    ----------
    opt : NativeOptimizer
    parts : list of Part
    t : int
        That of parameters which share one; 0: one more than any of the parts has taken.
    states : dict or None
        By parameter; None: the optimizer's.
    measured_by : MeasuredBackward or None
        Hands over what it has measured of the parameters.
    counts : bool or None
        Whether it is a step, or makes state that is missing and no more. None: a step unless the whole
        model asks for its state alone.
    """

    def __init__(
        self,
        opt: NativeOptimizer,
        parts: list[Part],
        t: int = 0,
        states: dict[torch.Tensor, Any] | None = None,
        measured_by: MeasuredBackward | None = None,
        counts: bool | None = None,
    ) -> None:
        self._opt, self._parts, self._t = opt, parts, t
        self._counts = counts
        self._measured_by = measured_by
        self._measured = None if measured_by is None else measured_by.hand_over()
        self._states = opt.state if states is None else states
        self._settings = [opt._settings(part.place, part.group) for part in parts]
        if not t and not all(are_constant(one.switches) for one in self._settings):
            t = opt._steps_taken() + 1  # once, for the schedules of all groups
        self._groups = [
            (
                one.native,
                *opt._rates(one, part.group, t),
                part.params,
                part.first,
                part.names,
                part.grads,
            )
            for one, part in zip(self._settings, parts)
        ]
        keeps_masters = any(one.kept.masters for one in self._settings)
        self._followers = opt._followers() if keeps_masters else None
        # Of parameters whose state was made or changed for this step: what it was, None without one,
        # and its count of steps then.
        self._states_before: list[tuple[torch.Tensor, dict[str, Any] | None, float | None]] = []

    def make_ready(self) -> Ready:
        """Make what a step needs, and say where it may be taken."""
        options = self._opt._native_options(self._t, only_looks=True)
        _, unready, foreign, _, _ = self._opt._native_steps().step(
            self._groups, self._states, options
        )
        if foreign:
            return Ready.only_here
        return (
            Ready.anywhere if not unready or self._made_ready(unready, foreign) else Ready.no_step
        )

    def take(self) -> None:
        """Take the step; where it raises, what it has not stepped is as it was."""
        following = None
        if self._followers is not None:
            following = Following(self._followers, self._states, self._opt._dialect.names)
        try:
            self._take(following)
        except BaseException:
            if following is not None:
                following.give_back()
            self._give_back_states()
            raise

    def _take(self, following: Following | None) -> None:
        opt = self._opt
        native, options = opt._native_steps(), opt._native_options(self._t)
        self._follow(following)
        stepped, unready, foreign, norm, skipped = native.step(
            self._groups, self._states, options, self._measured
        )
        if stepped is None:
            if not self._made_ready(unready, foreign):
                return
            self._follow(following)
            stepped, unready, foreign, norm, skipped = native.step(
                self._groups, self._states, options, self._measured
            )
            if stepped is None:
                raise RuntimeError("the state that was just made is not what a step needs")
        if following is not None:
            if skipped:
                following.give_back()
            else:
                following.keep()
        if self._measured_by is not None and self._measured is not None:
            self._measured_by.taken = self._measured.n_taken
            self._measured = None
        increment_versions(stepped)
        if self._followers is not None:
            self._followers.saw(stepped, self._states, opt._dialect.names)
        opt.grad_norm = norm
        if foreign:
            self._require_steppable(foreign)
            if self._only_allocates():  # there was nothing else to step
                self._begin_foreign(foreign)
                return
            for part, param in foreign:
                with torch.no_grad():
                    others.step([param], self._states, self._parts[part].group)
        if skipped and opt.options.nonfinite == "skip":
            note_skipped(opt)

    def _follow(self, following: Following | None) -> None:
        if following is not None:
            for one, part in zip(self._settings, self._parts):
                following.follow(part.params, one.is_stochastic)

    def _give_back_states(self) -> None:
        """Let states that were made or changed be what they were, where no step was taken."""
        for param, before, count in self._states_before:
            if (count_in(self._states, param, self._opt._dialect.names) or 0) != (count or 0):
                continue
            if before is None:
                self._states.pop(param, None)
            else:
                self._states[param].clear()
                self._states[param].update(before)
        self._states_before.clear()

    def _made_ready(self, unready: Places, foreign: Places) -> bool:
        """Make the state that a step needs. False if that was all that was asked for."""
        if foreign:
            self._require_steppable(foreign)
        allocates = self._only_allocates()
        names = self._opt._dialect.names
        ready: list[tuple[torch.Tensor, dict[str, Any]]] = []
        for part, param in unready:
            kept = self._settings[part].kept
            mine = self._states.get(param)
            shown = self._shown(part, param)
            if mine:
                ready.append((param, state.taken_over(mine, names, kept, shown, param)))
            else:
                fresh: dict[str, Any] = {}
                state.begin(fresh, names, kept, shown, param)
                ready.append((param, fresh))
        for param, _ in ready:
            mine, count = self._states.get(param), count_in(self._states, param, names)
            self._states_before.append((param, None if mine is None else dict(mine), count))
        for param, values in ready:  # nothing fails from here on
            self._states[param].update(values)
        if allocates:
            self._begin_foreign(foreign)
        return not allocates

    def _begin_foreign(self, foreign: Places) -> None:
        for _, param in foreign:
            if not self._states[param]:
                others.begin(self._states[param], param)

    def _only_allocates(self) -> bool:
        """Whether a step is to make the state and do nothing else.

        Distributed checkpoints take such steps: there is no state, every lr is 0 and every gradient
        of the model is zero. A warm-up that begins at 0 has gradients that are not.
        """
        if self._counts is not None:
            return not self._counts
        if any(self._states.values()):
            return False
        for part in self._parts:
            lr = part.group["lr"]
            if lr is None or is_schedule(lr) or float(lr) != 0:
                return False
            if any(grad is not None and bool(grad.any()) for grad in part.gradients()):
                return False
        return True

    def _require_steppable(self, foreign: Places) -> None:
        """Raise unless torch's own function may step tensors that are not plain."""
        opt = self._opt
        others.require_supported([param for _, param in foreign])
        for part, param in foreign:
            what = (
                f"{self._shown(part, param)} is a {torch.typename(param)} of {param.dtype} on "
                f"{param.device}"
            )
            if not opt._dialect.has_others or self._parts[part].grads is not None:
                raise TypeError(f"{what}, must be a plain tensor in this machine's memory")
            if opt.options.nonfinite != "propagate" or opt.options.max_grad_norm is not None:
                raise ValueError(
                    f"{what}, which torch's own function steps: nonfinite must be 'propagate' and "
                    "max_grad_norm None"
                )
            one = self._settings[part]
            if one.kept.masters is not None or one.is_stochastic:
                raise ValueError(
                    f"{what}, which torch's own function steps: masters must be None and rounding "
                    "'nearest'"
                )

    def _shown(self, index: int, param: torch.Tensor) -> str:
        part = self._parts[index]
        k = next(k for k, other in enumerate(part.params) if other is param)
        return f"params[{part.name_of(k)!r}]"


def note_skipped(opt: NativeOptimizer) -> None:
    opt.skipped += 1
    if opt.skipped & (opt.skipped - 1) == 0:  # 1, 2, 4, ...
        count = "a step was" if opt.skipped == 1 else f"{opt.skipped} steps were"
        warnings.warn(
            f"{count} left out, as nonfinite is 'skip'", SkippedStepWarning, _level_of_caller()
        )


def _level_of_caller() -> int:
    """Return the stacklevel of a warning by which it names the line that asked for the step.

    Between it and here are torch's wrappers: of every step, and one more of each scheduler.
    """
    level = 0
    frame = inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _INSIDE:
        frame = frame.f_back
        level += 1
    return level
