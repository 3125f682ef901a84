"""What all optimizers of torch's kind here have in common: groups, state and steps."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch

from adafactor_native._runtime import _core
from adafactor_native.rules import are_constant, rates_at
from adafactor_native.threads import get_num_threads
from adafactor_native.torch import compiled, loading, state
from adafactor_native.torch.backward_hooks import BackwardHooks
from adafactor_native.torch.fused_backward import FusedBackward, require_no_norm
from adafactor_native.torch.masters import Followers, Following
from adafactor_native.torch.measured_backward import MeasuredBackward
from adafactor_native.torch.options import NativeOptions, require_own_options
from adafactor_native.torch.reading import reader
from adafactor_native.torch.settings import Dialect, Settings, key_of, rate_of, settings_of
from adafactor_native.torch.sharded_params import is_of_fsdp1, may_be_sharded
from adafactor_native.torch.step_handle import StepHandle
from adafactor_native.torch.stepping import Part, Ready, StepCall, all_parts

if TYPE_CHECKING:
    from adafactor_native.torch.sharded_steps import ShardedSteps

_SINGLE = (
    "parameters lie in pieces on several ranks, must be whole for steps of single ones, inside backward or "
    "not: all ranks step together, by opt.step()"
)
_MEASURED_IN_PIECES = (
    "parameters lie in pieces on several ranks, must be whole for measure_in_backward: opt.step() measures "
    "and steps them"
)
_SINGLE_EXACT = (
    "sums is 'exact', must be 'fast' for steps of single parameters, inside backward or not: opt.step() "
    "takes exact ones"
)
_MEASURED_EXACT = "sums is 'exact', must be 'fast' for measure_in_backward: exact sums are added up in the step alone"
Hooks = TypeVar("Hooks", bound=BackwardHooks)

_HOOKED_BY: dict[type[BackwardHooks], str] = {
    FusedBackward: "fuse_backward",
    MeasuredBackward: "measure_in_backward",
}


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
        self._number = compiled.number_of_new(self)
        super().__init__(params, defaults)
        for index, group in enumerate(self.param_groups):
            self._settings(index, group)

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        ours = {"options": self.options, "skipped": self.skipped, "grad_norm": self.grad_norm}
        return {**super().__getstate__(), **ours}

    def __setstate__(self, given: dict[str, Any]) -> None:
        super().__setstate__(given)
        if "_number" not in self.__dict__:
            self._number = compiled.number_of_new(self)
        if "options" not in self.__dict__:
            self.options = NativeOptions()
            self.skipped = 0
            self.grad_norm = math.nan
        # Older states lack some. "differentiable", which torch adds to the defaults here, is no key of
        # ours: another would keep a flattened checkpoint of torch's class from loading.
        for group in self.param_groups:
            for key, default in self.defaults.items():
                if key != "differentiable":
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
        if torch.compiler.is_compiling():
            compiled.trace_step(self)
        else:
            self._settle()
            self._take_step()
        return loss

    def step_async(self) -> StepHandle:
        """Take a step beside the caller, who goes on while the kernels run.

        The gradients are those that the parameters have now; ``zero_grad()`` may follow at once, and
        waits with ``set_to_none=False``; the model's own writes zeros without asking.
        Until ``wait()`` nobody may read or write parameters or write to those gradients. The next
        step, ``state_dict()``, ``load_state_dict()``, a copy, a pickle and ``fork`` wait for it by
        themselves, and all but fork raise what it raised. Exit waits as well.

        Returns
        -------
        StepHandle
            ``wait()`` raises what the step raised. The first step of a parameter, which makes its
            state, and those of tensors that are not plain are taken before this returns.
        """
        self._settle()
        self._opt_called = True  # which torch's schedulers look at
        if self._steps_together():  # ranks speak in the caller's thread
            self._take_step()
            return StepHandle()
        if self._is_to_be_skipped():
            return StepHandle()
        parts = [part._replace(grads=part.gradients()) for part in all_parts(self)]
        parts = [part._replace(params=list(part.params)) for part in parts]
        call = StepCall(self, parts, measured_by=self._measured_in_backward())
        ready = call.make_ready()
        if ready is Ready.only_here:
            self._take_step()
        if ready is not Ready.anywhere:
            return StepHandle()
        handle = self._pending = StepHandle(call.take)
        return handle

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients, as torch does, or set them to zero once no step under way reads them."""
        if not set_to_none:
            self._settle()
        super().zero_grad(set_to_none)

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
        self._settle()
        names = group.get("param_names")
        part = Part(
            index, self.param_groups[index], [p], first + i, None if names is None else [names[i]]
        )
        self._take_step([part])

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
            With `max_grad_norm`, which needs all gradients at once: `measure_in_backward` has it. So
            does backward, if it is set later. With ``sums="exact"``, and where parameters lie in pieces
            on several ranks, which step together. Gradients must not be scaled by a GradScaler
            either: ``scaler.step(opt)`` finds none and fails.

        Notes
        -----
        ``with opt.accumulating():`` around a backward adds its gradients up; the first backward
        outside steps with their sum. In conventions whose parameters have one t (optax's and
        big_vision's) all that is stepped in a backward has the same; activation checkpoints must not
        be reentrant there, as those run a backward of their own for each part.
        """
        require_no_norm(self)
        self._require_single_steps()
        return self._hook(FusedBackward)

    def measure_in_backward(self) -> MeasuredBackward:
        """Take the first of a step's two sweeps inside backward, while each gradient is in cache.

        ``step()`` then has less to read. It is the same step, to the bit, and all or nothing as
        ever: `max_grad_norm` and `nonfinite` hold for all gradients together, and nothing is written
        before ``step()``. Nor do gradients change or go away: what is kept is about 30 bytes for each
        row and column of a factored parameter. Parameters that are made to require a gradient later
        are measured by ``step()``, or watched after another call of this.

        Whatever happens between backward and the step may happen. The step measures again what it
        finds changed since: a gradient, a parameter or its state that is another tensor or has other
        memory, or that torch has written to (``clip_grad_norm_``, a second backward), or of which
        samples differ (GradScaler's unscaling, which torch does not count); and all where a
        hyper-parameter that enters was changed (eps, beta2; not lr) or where `max_grad_norm` scales
        the gradients down. ``zero_grad()`` drops what was measured of gradients that go.

        Returns
        -------
        MeasuredBackward
            ``remove()`` ends it; `waiting` and `taken` count gradients.

        Raises
        ------
        ValueError
            While `fuse_backward` is on, which leaves no gradients to a step; with ``sums="exact"``, whose
            sums are added up in the step alone; where parameters lie in pieces on several ranks.

        Warnings
        --------
        What is written to a few elements of a gradient through ``.data`` or NumPy, neither torch's
        version nor the samples show, one element of each 4096 and 64 at most: clip by value under
        ``torch.no_grad()``, by ``p.grad.clamp_(-1, 1)``, not by ``p.grad.data.clamp_(-1, 1)``.

        Notes
        -----
        ``with opt.accumulating():`` around a backward leaves its gradients unmeasured, as the next
        one changes them. Parameters below 4096 elements are never measured ahead, nor are those
        that have no state yet, as before their first step.
        """
        if self._has_pieces():
            raise ValueError(_MEASURED_IN_PIECES)
        if self.options.sums == "exact":
            raise ValueError(_MEASURED_EXACT)
        return self._hook(MeasuredBackward)

    def _hook(self, kind: type[Hooks]) -> Hooks:
        hooked = self.__dict__.get("_hooked")
        if hooked is None:
            hooked = self._hooked = kind(self)
        if type(hooked) is not kind:
            raise ValueError(
                f"{_HOOKED_BY[type(hooked)]} is on, must be ended by remove() before "
                f"{_HOOKED_BY[kind]}: a backward does one or the other"
            )
        for index, group in enumerate(self.param_groups):
            hooked.watch(index, group)
        return hooked

    def accumulating(self) -> AbstractContextManager[None]:
        """Return a context in which backward adds gradients up, and nothing is stepped or measured."""
        hooked = self.__dict__.get("_hooked")
        return contextlib.nullcontext() if hooked is None else hooked.accumulating()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch; `fuse_backward` and `measure_in_backward` watch it too."""
        require_own_options(param_group)
        if "_hooked" in self.__dict__:
            self._require_whole(param_group)
        super().add_param_group(param_group)
        if "_hooked" in self.__dict__:
            self._hooked.watch(len(self.param_groups) - 1, self.param_groups[-1])

    def _require_whole(self, param_group: dict[str, Any]) -> None:
        """Raise a ValueError if a group has parameters in pieces, which backward neither steps nor measures."""
        given = param_group["params"]
        if isinstance(given, Iterable) and not isinstance(given, (torch.Tensor, set)):
            given = param_group["params"] = list(given)
            if may_be_sharded([p[1] if isinstance(p, tuple) else p for p in given]):
                raise ValueError(
                    "the group has parameters in pieces on several ranks, must have whole ones while "
                    f"{_HOOKED_BY[type(self._hooked)]} is on: end it by remove() before"
                )

    def params_changed(self) -> None:
        """Let float32 masters follow weights that were written since the last step.

        A step does so by itself where a parameter's version or memory shows that somebody wrote to
        it. What is written through ``p.data`` or NumPy shows nowhere: say so here.
        """
        self._settle()
        if self._steps_together():
            self._sharded_steps().follow_all(self)
        following = Following(self._followers(), self.state, self._dialect.names)
        try:
            for part in all_parts(self):
                plain = [
                    p
                    for k, p in enumerate(part.params)
                    if not self._lies_in_pieces(part.name_of(k), p)
                ]
                stochastic = self._settings(part.place, part.group).is_stochastic
                following.follow(plain, stochastic, all_of_them=True)
        except BaseException:
            following.give_back()
            raise
        following.keep()

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
        self._settle()
        loading.load(self, super().load_state_dict, state_dict)
        if "_sharded" in self.__dict__:
            self._sharded.forgive()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as torch does: its tensors are the optimizer's own, not copies."""
        self._settle()
        state: dict[str, Any] = super().state_dict()
        return state

    def take_flat_shards(self, module: torch.nn.Module) -> None:
        """Say whose parameters FSDP1 has made ranges of flat ones.

        ``FullyShardedDataParallel(module, use_orig_params=True)`` leaves the optimizer parameters of one
        axis that do not tell their shapes. After this call each is stepped as the whole would be. What
        ``fully_shard`` makes, and other DTensors, need no such call.

        Parameters
        ----------
        module : Module
            The wrapped one.

        Raises
        ------
        ValueError
            If it is not wrapped so, or sharded over some of the ranks only.
        """
        from adafactor_native.torch.fsdp1_ranges import flat_params

        self._settle()
        self._sharded_steps().cuts.take_flat(flat_params(module))

    def _take_step(self, parts: list[Part] | None = None, t: int = 0) -> None:
        """Take one step of some parameters, or of all."""
        if parts is not None:
            self._require_single_steps()
        elif self._steps_together():
            with self._lock():
                self._take_sharded_step()
            return
        if self._is_to_be_skipped():
            return
        if parts is not None:  # other parameters may be stepped by other threads
            StepCall(self, parts, t, counts=True).take()
            return
        with self._lock():
            StepCall(self, all_parts(self), t, measured_by=self._measured_in_backward()).take()

    def _measured_in_backward(self) -> MeasuredBackward | None:
        hooked = self.__dict__.get("_hooked")
        return hooked if isinstance(hooked, MeasuredBackward) else None

    def _take_sharded_step(self) -> None:
        from adafactor_native.torch.sharded_header import Taken

        parts = all_parts(self)
        whole, n_whole = [], 0
        for part in parts:
            every = [(part.name_of(k), p) for k, p in enumerate(part.params)]
            plain = [each for each in every if not self._lies_in_pieces(*each)]
            n_whole += len(plain)
            if any(p.grad is not None for _, p in plain):
                whole.append(
                    part._replace(params=[p for _, p in plain], names=[name for name, _ in plain])
                )
        all_are_plain = n_whole == sum(len(part.params) for part in parts)
        if all_are_plain and self.options.sums == "fast":
            if not self._is_to_be_skipped():
                StepCall(self, parts, measured_by=self._measured_in_backward()).take()
            return
        if all_are_plain:
            whole = []

        def require() -> None:
            options = self.options
            if whole and (
                options.nonfinite != "propagate"
                or options.max_grad_norm is not None
                or options.sums == "exact"
            ):
                raise ValueError(
                    f"params[{next(iter(whole[0].names or ()))!r}] is whole on this rank and others lie in "
                    "pieces: with nonfinite other than 'propagate', max_grad_norm or sums='exact', all must be "
                    "DTensors, as distribute_tensor(param, mesh, [Replicate()]) makes them"
                )

        taken = self._sharded_steps().take(self, require)
        if whole and taken is not Taken.left_out:
            StepCall(self, whole, counts=taken is Taken.step).take()

    def _require_single_steps(self) -> None:
        """Raise a ValueError where parameters only step together."""
        if self._has_pieces():
            raise ValueError(_SINGLE)
        if self.options.sums == "exact":
            raise ValueError(_SINGLE_EXACT)

    def _steps_together(self) -> bool:
        """Whether a step is one of all parameters, in phases, between which ranks may speak."""
        return self.options.sums == "exact" or self._has_pieces()

    def _has_pieces(self) -> bool:
        """Whether parameters lie in pieces on several ranks."""
        return any(may_be_sharded(group["params"]) for group in self.param_groups)

    def _lies_in_pieces(self, name: str | int, param: torch.Tensor) -> bool:
        if not may_be_sharded((param,)):
            return False
        sharded = self._sharded_steps()
        if not sharded.cuts.is_cut(param) and is_of_fsdp1(param):
            sharded.cuts.require_known(name, param)
        return sharded.cuts.is_cut(param)

    def _sharded_steps(self) -> ShardedSteps:
        sharded: ShardedSteps | None = self.__dict__.get("_sharded")
        if sharded is None:
            from adafactor_native.torch.sharded_steps import ShardedSteps

            sharded = self._sharded = ShardedSteps()
        return sharded

    def _is_to_be_skipped(self) -> bool:
        found_inf = getattr(self, "found_inf", None)
        return found_inf is not None and float(found_inf) != 0

    def _settle(self) -> None:
        """Wait for a step that was begun by `step_async`, and raise what it raised."""
        pending: StepHandle | None = self.__dict__.pop("_pending", None)
        if pending is not None:
            pending.wait()

    def _lock(self) -> StepLock:
        lock: StepLock = self.__dict__.setdefault("_step_lock", StepLock())
        return lock

    def _native_steps(self) -> _core.TorchSteps:
        native: _core.TorchSteps | None = self.__dict__.get("_native")
        if native is None:
            native = self._native = _core.TorchSteps(reader(), self._dialect.names.native())
        return native

    def _followers(self) -> Followers:
        followers: Followers = self.__dict__.setdefault("_following", Followers())
        return followers

    def _settings(self, index: int, group: Mapping[str, Any]) -> Settings:
        """Return what the values of a group mean; lr, which most schedulers set, is not looked at."""
        key = key_of(self._dialect, self.options, group)
        cache: dict[int, tuple[Any, Settings]] = self.__dict__.setdefault("_cache", {})
        known = cache.get(index)
        if known is not None and known[0] == key:
            return known[1]
        settings = settings_of(self._dialect, key, self._placeholder_lr(group))
        cache[index] = key, settings
        return settings

    def _placeholder_lr(self, group: Mapping[str, Any]) -> Any:
        return 0.0

    def _lr(self, group: Mapping[str, Any]) -> Any:
        """Return the learning rate of a group; None where its value does not matter."""
        return group["lr"]

    def _rates(
        self, settings: Settings, group: Mapping[str, Any], t: int = 0
    ) -> tuple[float, float]:
        lr = self._lr(group)
        switches = settings.switches
        if lr is not None:
            switches["lr"] = rate_of(self._dialect, lr)
        if not are_constant(switches):
            t = t or self._steps_taken() + 1
        return rates_at(switches, max(t, 1))

    def _native_options(self, t: int = 0, only_looks: bool = False) -> _core.TorchOptions:
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
            only_looks=only_looks,
        )

    def _num_threads(self) -> int:
        return self.options.num_threads or min(torch.get_num_threads(), get_num_threads())

    def _steps_taken(self) -> int:
        """Return the most steps that any parameter has taken."""
        key = self._dialect.names.step
        counts = (kept[key] for kept in self.state.values() if key in kept)
        return max((state.count_of(count, key) for count in counts), default=0)


class StepLock:
    """One step of an optimizer at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("this optimizer is being updated by another thread")

    def __exit__(self, *error: object) -> None:
        self._lock.release()
