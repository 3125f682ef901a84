"""What all optimizers of torch's kind here have in common: groups, state and steps."""

from __future__ import annotations

import contextlib
import math
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from adafactor_native._runtime import _core
from adafactor_native.conventions import CONVENTIONS
from adafactor_native.guards import SkippedStepWarning
from adafactor_native.rules import are_constant, rates_at, rule_of
from adafactor_native.threads import get_num_threads
from adafactor_native.torch import loading, others, state
from adafactor_native.torch.fused_backward import FusedBackward
from adafactor_native.torch.masters import Followers
from adafactor_native.torch.options import OF_GROUPS, NativeOptions
from adafactor_native.torch.reading import reader
from adafactor_native.torch.state import Kept, StateNames


@dataclass(frozen=True)
class Dialect:
    """How a class asks for steps.

    Attributes
    ----------
    convention : str
        Of `adafactor_native.conventions`.
    lr : str
        The convention's argument that ``group["lr"]`` is.
    arguments : tuple of str
        All others that groups have, called as the convention calls them.
    names : StateNames
    has_others : bool
        Tensors that are not plain can be stepped as well, by `others`.
    """

    convention: str
    lr: str
    arguments: tuple[str, ...]
    names: StateNames
    has_others: bool = False


@dataclass(frozen=True)
class Settings:
    """What the values of a group mean, for as long as they stay what they are."""

    native: _core.TorchGroup
    switches: dict[str, Any]  # "lr" is set before they are used
    kept: Kept


_PLAIN = (float, int, bool, str, type(None))


def constant(value: Any) -> Any:
    """Return a group's value as one that does not change when somebody writes to it."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, (tuple, list)):
        return tuple(map(constant, value))
    if hasattr(value, "item") and not callable(value):  # a tensor or a NumPy scalar
        return value.item()
    return value


class NativeOptimizer(torch.optim.Optimizer):
    """The base of the optimizers here. Subclasses say whose arguments they take.

    Attributes
    ----------
    options : NativeOptions
        What is ours: can be changed between steps.
    skipped : int
        Steps that were left out, with ``nonfinite="skip"``.
    grad_norm : float
        Of all gradients of the last step, before any clipping; nan before the first.
    """

    _dialect: ClassVar[Dialect]

    options: NativeOptions
    skipped: int
    grad_norm: float

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        options: Mapping[str, Any],
    ) -> None:
        self.options = NativeOptions(**options)
        self.skipped = 0
        self.grad_norm = math.nan
        super().__init__(params, defaults)
        for index, group in enumerate(self.param_groups):
            self._settings(index, group)

    def __getstate__(self) -> dict[str, Any]:
        ours = {"options": self.options, "skipped": self.skipped, "grad_norm": self.grad_norm}
        return {**super().__getstate__(), **ours}

    def __setstate__(self, given: dict[str, Any]) -> None:
        super().__setstate__(given)
        if "options" not in self.__dict__:
            self.options = NativeOptions()
            self.skipped = 0
            self.grad_norm = math.nan
        for group in self.param_groups:
            for key, default in self.defaults.items():
                group.setdefault(key, default)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of every parameter with a gradient, in place.

        Parameters
        ----------
        closure : callable or None
            Computes the loss and the gradients anew, and is called first.

        Returns
        -------
        object
            What the closure returned, or None.

        Raises
        ------
        FloatingPointError
            With ``nonfinite="raise"``, if anything would not be finite. Nothing is changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self._alone():
            self._take_step()
        return loss

    def step_param(self, p: torch.Tensor, group: Mapping[str, Any]) -> None:
        """Take one step of a single parameter, as hooks that run inside backward do.

        Parameters
        ----------
        p : Tensor
            Of the group; without a gradient nothing is done.
        group : dict
            Of `param_groups`.
        """
        for index, other in enumerate(group["params"]):
            if other is p:
                return self.step_parameter(p, group, index)
        raise ValueError("p is none of group['params'], must be one")

    def step_parameter(self, p: torch.Tensor, group: Mapping[str, Any], i: int) -> None:
        """Take one step of a single parameter, the i-th of the group; see `step_param`."""
        if p.grad is None:
            return
        if self.options.max_grad_norm is not None:
            raise ValueError(
                "max_grad_norm is set, must be None for steps of single parameters: the norm is that "
                "of all gradients"
            )
        first = 0
        index = 0
        for other in self.param_groups:
            if other is group:
                break
            index += 1
            first += len(other["params"])
        else:
            raise ValueError("group is none of param_groups, must be one")
        self._take_step([(index, group, [p], first + i, _names(group, i))])

    def fuse_backward(self) -> FusedBackward:
        """Step every parameter inside backward, as soon as its gradient is complete, and free that.

        Gradients of one layer exist at a time, not those of the model. The bits are those of plain
        steps. ``step()`` finds no gradients then, and may be called or not. Parameters that are made
        to require a gradient later are stepped by ``step()``, or watched after another call of this.

        Each parameter is stepped for itself, so that a step is not all or nothing: where one would
        not be finite, with ``nonfinite="raise"``, backward raises a FloatingPointError that says
        which were stepped before. With "skip" a parameter at fault is left out.

        Returns
        -------
        FusedBackward
            ``remove()`` ends it.

        Raises
        ------
        ValueError
            With `max_grad_norm`, which needs all gradients at once. Gradients must not be scaled by
            a GradScaler either: ``scaler.step(opt)`` finds none and fails.

        Notes
        -----
        ``with opt.accumulating():`` around a backward adds its gradients up; the first backward
        outside steps with their sum. In conventions whose parameters have one t (optax's and
        big_vision's) all that is stepped in a backward has the same; activation checkpoints must not
        be reentrant there, as those run a backward of their own for each part.
        """
        if self.options.max_grad_norm is not None:
            raise ValueError(
                f"max_grad_norm is {self.options.max_grad_norm}, must be None with fuse_backward: the "
                "norm is that of all gradients, which never exist at once"
            )
        fused: FusedBackward = self.__dict__.setdefault("_fused", FusedBackward(self))
        for index, group in enumerate(self.param_groups):
            fused.watch(index, group)
        return fused

    def accumulating(self) -> AbstractContextManager[None]:
        """Return a context in which backward adds gradients up, and `fuse_backward` steps nothing."""
        fused = self.__dict__.get("_fused")
        return contextlib.nullcontext() if fused is None else fused.accumulating()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch; `fuse_backward` steps it too."""
        super().add_param_group(param_group)
        if "_fused" in self.__dict__:
            self._fused.watch(len(self.param_groups) - 1, self.param_groups[-1])

    def params_changed(self) -> None:
        """Let float32 masters follow weights that were written since the last step.

        A step does so by itself where a parameter's version or memory shows that somebody wrote to
        it. What is written through ``p.data`` or NumPy shows nowhere: say so here.
        """
        for index, group in enumerate(self.param_groups):
            stochastic = self._settings(index, group).switches["rounding"] == "stochastic"
            self._followers().follow(
                group["params"], self.state, self._dialect.names, stochastic, all_of_them=True
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this class or of the library's own, with hyper-parameters.

        Running means become `options.state_dtype`, first moments, masters and lower halves stay what
        they are: nothing is cast to the parameter's dtype, and nothing is shared with `state_dict`.
        A state that no step could use is refused before anything is changed.

        Parameters
        ----------
        state_dict : dict
            What ``state_dict()`` returned.

        Raises
        ------
        TypeError, ValueError
            If the groups or a parameter's state do not fit; the message names them.
        """
        loading.load(self, super().load_state_dict, state_dict)

    def _alone(self) -> _StepLock:
        """Return a lock that is taken already, for ``with``."""
        lock: _StepLock = self.__dict__.setdefault("_lock", _StepLock())
        return lock

    def _take_step(self, parts: Sequence[tuple[Any, ...]] | None = None, t: int = 0) -> None:
        """Take one step of parts of groups: (index, group, params, position of the first, names).

        `t` is that of parameters which share one, 0: one more than any of `parts` has taken.
        """
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and float(found_inf) != 0:
            return
        native = self.__dict__.get("_native")
        if native is None:
            native = self._native = _core.TorchSteps(reader(), self._dialect.names.native())
        given = self._parts() if parts is None else parts
        settings = [self._settings(index, group) for index, group, *_ in given]
        groups = [
            (one.native, *self._rates(one, group, t), params, first, names)
            for one, (_, group, params, first, names) in zip(settings, given)
        ]
        followers = self._followers() if any(one.kept.masters for one in settings) else None
        if followers is not None:
            for one, part in zip(settings, given):
                stochastic = one.switches["rounding"] == "stochastic"
                followers.follow(part[2], self.state, self._dialect.names, stochastic)
        options = self._native_options(t)
        stepped, unready, foreign, norm, skipped = native.step(groups, self.state, options)
        if stepped is None:
            if not self._made_ready(unready, foreign, given):
                return
            stepped, unready, foreign, norm, skipped = native.step(groups, self.state, options)
            if stepped is None:
                raise RuntimeError("the state that was just made is not what a step needs")
        torch.autograd.graph.increment_version(stepped)
        if followers is not None:
            followers.saw(stepped, self.state, self._dialect.names)
        self.grad_norm = norm
        if foreign:
            self._step_others(foreign, given)
        if skipped and self.options.nonfinite == "skip":
            self._note_skipped()

    def _followers(self) -> Followers:
        followers: Followers = self.__dict__.setdefault("_following", Followers())
        return followers

    def _parts(self) -> list[tuple[Any, ...]]:
        parts, first = [], 0
        for index, group in enumerate(self.param_groups):
            params = group["params"]
            parts.append((index, group, params, first, group.get("param_names")))
            first += len(params)
        return parts

    def _settings(self, index: int, group: Mapping[str, Any]) -> Settings:
        """Return what the values of a group mean; lr, which most schedulers set, is not looked at."""
        dialect, options = self._dialect, self.options
        values = [constant(group[name]) for name in dialect.arguments]
        own = [group[name] if name in group else getattr(options, name) for name in OF_GROUPS]
        key = (*values, *own, options.state_dtype)
        cache = self.__dict__.setdefault("_cache", {})
        known = cache.get(index)
        if known is not None and known[0] == key:
            settings: Settings = known[1]
            return settings
        given = dict(zip(dialect.arguments, values))
        settings = self._translated(given, dict(zip(OF_GROUPS, own)))
        cache[index] = key, settings
        return settings

    def _translated(self, given: dict[str, Any], own: dict[str, Any]) -> Settings:
        own = NativeOptions(**own).__dict__
        convention = CONVENTIONS[self._dialect.convention]
        switches = convention.switches(
            (
                "{}",
                {
                    **given,
                    **self._placeholder_lr(given),
                    "rounding": own["rounding"],
                    "masters": own["masters"],
                },
            )
        )
        kept = Kept(
            factored_axes=switches["factored_axes"],
            min_dim_size_to_factor=switches["min_dim_size_to_factor"],
            has_moment=switches["beta1"] is not None,
            momentum_dtype=own["momentum_dtype"],
            masters=switches["masters"],
            state_dtype=self.options.state_dtype,
        )
        native = _core.TorchGroup(
            rule=rule_of(switches),
            factored_axes=kept.factored_axes,
            min_dim_size_to_factor=kept.min_dim_size_to_factor,
            masters=kept.masters,
            has_moment=kept.has_moment,
            has_float32_state=kept.state_dtype == torch.float32,
        )
        return Settings(native, switches, kept)

    def _placeholder_lr(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {self._dialect.lr: 0.0}

    def _lr(self, group: Mapping[str, Any]) -> Any:
        """Return the learning rate of a group; None where its value does not matter."""
        return group["lr"]

    def _rates(
        self, settings: Settings, group: Mapping[str, Any], t: int = 0
    ) -> tuple[float, float]:
        lr = self._lr(group)
        switches = settings.switches
        if lr is not None:
            if callable(lr) and not isinstance(lr, torch.Tensor):
                own = CONVENTIONS[self._dialect.convention].own.get(self._dialect.lr)
                lr = own.meaning("lr", lr) if own is not None else lr
            else:
                lr = float(lr)
                if not math.isfinite(lr):
                    raise ValueError(f"lr is {lr}, must be finite")
            switches["lr"] = lr
        if not are_constant(switches):
            t = t or self._steps_taken() + 1
        return rates_at(switches, max(t, 1))

    def _native_options(self, t: int = 0) -> _core.TorchOptions:
        options = self.options
        scale = getattr(self, "grad_scale", None)
        norm = options.max_grad_norm
        return _core.TorchOptions(
            nonfinite=_core.NonFinite[options.nonfinite],
            max_grad_norm=math.inf if norm is None else norm,
            num_threads=self._num_threads(),
            seed=options.seed,
            grad_scale=1.0 if scale is None else float(scale),
            t=t,
        )

    def _num_threads(self) -> int:
        return self.options.num_threads or min(torch.get_num_threads(), get_num_threads())

    def _steps_taken(self) -> int:
        """Return the most steps that any parameter has taken."""
        key = self._dialect.names.step
        counts = (kept[key] for kept in self.state.values() if key in kept)
        return max((state.count_of(count, key) for count in counts), default=0)

    def _made_ready(
        self,
        unready: Sequence[tuple[int, torch.Tensor]],
        foreign: Sequence[tuple[int, torch.Tensor]],
        given: Sequence[tuple[Any, ...]],
    ) -> bool:
        """Make the state that a step needs. False if that was all that was asked for."""
        if foreign:
            self._require_steppable(foreign, given)
        allocates = self._only_allocates(given)
        names = self._dialect.names
        ready: list[tuple[torch.Tensor, dict[str, Any]]] = []
        for part, param in unready:
            index, group = given[part][:2]
            kept = self._settings(index, group).kept
            mine = self.state.get(param)
            shown = f"params[{self._position(param)}]"
            if mine:
                ready.append((param, state.taken_over(mine, names, kept, shown, param)))
            else:
                fresh: dict[str, Any] = {}
                state.begin(fresh, names, kept, shown, param)
                ready.append((param, fresh))
        for param, values in ready:  # nothing fails from here on
            self.state[param].update(values)
        if allocates:
            for _, param in foreign:
                if not self.state[param]:
                    others.begin(self.state[param], param)
        return not allocates

    def _only_allocates(self, given: Sequence[tuple[Any, ...]]) -> bool:
        """Whether a step is to make the state and do nothing else.

        Distributed checkpoints take such steps: there is no state, every lr is 0 and every gradient
        of the model is zero. A warm-up that begins at 0 has gradients that are not.
        """
        if any(self.state.values()):
            return False
        for _, group, params, _, _ in given:
            lr = group["lr"]
            if lr is None or (callable(lr) and not isinstance(lr, torch.Tensor)) or float(lr) != 0:
                return False
            for param in params:
                if param.grad is not None and bool(param.grad.any()):
                    return False
        return True

    def _require_steppable(
        self,
        foreign: Sequence[tuple[int, torch.Tensor]],
        given: Sequence[tuple[Any, ...]],
    ) -> None:
        others.require_supported([param for _, param in foreign])
        param = foreign[0][1]
        shown = f"params[{self._position(param)}]"
        what = f"{shown} is a {torch.typename(param)} of {param.dtype} on {param.device}"
        if not self._dialect.has_others:
            raise TypeError(f"{what}, must be a plain tensor in this machine's memory")
        options = self.options
        if options.nonfinite != "propagate" or options.max_grad_norm is not None:
            raise ValueError(
                f"{what}, which torch's own function steps: nonfinite must be 'propagate' and "
                "max_grad_norm None"
            )
        for part, _ in foreign:
            index, group = given[part][:2]
            switches = self._settings(index, group).switches
            if switches["masters"] is not None or switches["rounding"] != "nearest":
                raise ValueError(
                    f"{what}, which torch's own function steps: masters must be None and rounding "
                    "'nearest'"
                )

    def _step_others(
        self,
        foreign: Sequence[tuple[int, torch.Tensor]],
        given: Sequence[tuple[Any, ...]],
    ) -> None:
        self._require_steppable(foreign, given)
        for part, param in foreign:
            with torch.no_grad():
                others.step([param], self.state, given[part][1])

    def _position(self, param: torch.Tensor) -> int:
        params = (other for group in self.param_groups for other in group["params"])
        return next(index for index, other in enumerate(params) if other is param)

    def _note_skipped(self) -> None:
        self.skipped += 1
        if self.skipped & (self.skipped - 1) == 0:  # 1, 2, 4, ...
            count = "a step was" if self.skipped == 1 else f"{self.skipped} steps were"
            warnings.warn(
                f"{count} left out, as nonfinite is 'skip'", SkippedStepWarning, stacklevel=5
            )


class _StepLock:
    """One step of an optimizer at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("this optimizer is being updated by another thread")

    def __exit__(self, *error: object) -> None:
        self._lock.release()


def _names(group: Mapping[str, Any], i: int) -> list[str] | None:
    names = group.get("param_names")
    return None if names is None else [names[i]]
