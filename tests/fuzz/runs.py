"""Steps of a drawn model in one way (instruction set, threads, walk), and all that they left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import adafactor_native as an
from fuzz.models import Model

STATE = ("exp_row", "exp_col", "v")  # of an AdaFactor
REPORTED = ("rms_grad", "rms_u", "clip_divisor", "rms_param", "step_size", "stepped")
REFUSALS = (FloatingPointError, TypeError, ValueError)


class Fault(AssertionError):
    """What the fuzzer has found."""


@dataclass(frozen=True)
class Way:
    """resumes: the step before which an Optimizer's state is loaded into a new one, or -1."""

    isa: str
    threads: int
    walk: str
    resumes: int = -1


@contextlib.contextmanager
def walking(way: Way) -> Iterator[None]:
    """Run steps on an instruction set, by a walk of rows."""
    core = an._core
    before = core.running_isa(), core.forced_walk()
    assert core.set_isa(way.isa) and core.force_walk(way.walk)
    try:
        yield
    finally:
        core.set_isa(before[0])
        core.force_walk(before[1])


def state_of(opt: an.AdaFactor) -> dict[str, np.ndarray]:
    arrays = ((kind, getattr(opt, kind)) for kind in STATE)
    return {kind: array for kind, array in arrays if array is not None}


@dataclass
class Run:
    """A model's arrays in an arena of its own, its optimizer or optimizers, and what steps said.

    Attributes
    ----------
    said : list of str
        Of each step its numbers or its error: the same in every way.
    taken : int
        Steps of tensors.
    """

    model: Model
    way: Way
    arena: np.ndarray = field(init=False)
    params: dict[str, np.ndarray] = field(init=False)
    copies: dict[str, np.ndarray] = field(init=False)
    said: list[str] = field(init=False)
    taken: int = 0
    left_out: int = 0

    def __post_init__(self) -> None:
        model, arena = self.model, self.model.arena
        # At the same distance from a cache line as the model's own.
        room = np.empty(arena.size + 64, np.uint8)
        self.arena = room[-room.ctypes.data % 64 :][: arena.size]
        self.arena[...] = arena
        self.said = []
        self.params = {t.name: t.param.view(self.arena) for t in model.tensors}
        self.copies = {t.name: t.copy.view(self.arena) for t in model.tensors if t.copy}
        for tensor in model.tensors:
            for place, values in zip([tensor.param, *tensor.grads], tensor.values):
                if place is None:
                    continue
                view = place.view(self.arena)
                if 0 in place.strides:
                    values = values[tuple(slice(None if s else 1) for s in place.strides)]
                    view = view[tuple(slice(None if s else 1) for s in place.strides)]
                view[...] = values
        self.grads: list[dict[str, np.ndarray | None]] = [
            {
                t.name: place.view(self.arena) if (place := t.grads[k]) else None
                for t in model.tensors
            }
            for k in range(len(model.ways))
        ]
        self.opt: Any = None
        self.optimizers: dict[str, Any] = {}
        if model.kind == "AdaFactor":
            self.optimizers = {
                name: an.AdaFactor(param.shape, **self._arguments())
                for name, param in self.params.items()
            }
        else:
            self.opt = self._new_optimizer()

    def _arguments(self) -> dict[str, Any]:
        return {**self.model.arguments, **self.model.options, "num_threads": self.way.threads}

    def _new_optimizer(self) -> an.Optimizer:
        copies = self.copies or None
        return an.Optimizer(self.params, self.model.convention, copies=copies, **self._arguments())

    def _resume(self) -> None:
        """Go on with new optimizers that have loaded the state."""
        if self.opt is None:
            for name, opt in self.optimizers.items():
                new = an.AdaFactor(opt.shape, **self._arguments())
                new.load_state_dict(opt.state_dict())
                self.optimizers[name] = new
            return
        new = self._new_optimizer()
        try:
            new.load_state_dict(self.opt.state_dict())
        except ValueError as error:  # a master of a param that was given infinite
            if "must be finite" not in str(error) or self.model.of_params in ("plain", "zeros"):
                raise
            return
        self.opt = new

    def states(self) -> dict[str, dict[str, np.ndarray]]:
        """The arrays themselves."""
        if self.opt is not None:
            return dict(self.opt.state)
        return {name: state_of(opt) for name, opt in self.optimizers.items()}

    def remembered(self) -> bytes:
        """All that the next step goes by beside the arena."""
        parts = [array.tobytes() for state in self.states().values() for array in state.values()]
        if self.opt is not None:
            parts.append(np.array([self.opt.t, *self.opt.counts], np.int64).tobytes())
        else:
            parts.append(np.array([o.t for o in self.optimizers.values()], np.int64).tobytes())
        return b"".join(parts)

    def step(self, k: int) -> None:
        """Take step number k from 0; an error must have changed nothing."""
        # What was propagated is in no state that loads.
        if k == self.way.resumes and self.model.options["nonfinite"] != "propagate":
            self._resume()
        grads, spoilt = self.grads[k], self.model.spoilt.get(k)
        if spoilt is not None:
            self._refused(k, spoilt)
        with np.errstate(all="ignore"):
            if self.opt is None:
                self._step_of_arrays(grads)
            else:
                self._step_of_model(self.model.ways[k], grads)

    def _unchanged(self, call: Callable[[], Any], what: str) -> Exception | None:
        """Call; return the error, which must not have changed a byte."""
        arena, state = self.arena.copy(), self.remembered()
        try:
            call()
        except REFUSALS as error:
            if self.arena.tobytes() != arena.tobytes():
                raise Fault(f"{what}: an error has changed arrays: {error}") from error
            if self.remembered() != state:
                raise Fault(f"{what}: an error has changed the state: {error}") from error
            return error
        return None

    def _step_of_arrays(self, grads: dict[str, np.ndarray | None]) -> None:
        for name, opt in self.optimizers.items():
            arena = self.arena.copy() if self.arena.size < 20_000 else None
            state = [a.tobytes() for a in state_of(opt).values()]
            skipped = opt.skipped
            try:
                opt.update(self.params[name], grads[name])
            except FloatingPointError as error:
                self.said.append(str(error))
                self.left_out += 1
                if arena is not None and self.arena.tobytes() != arena.tobytes():
                    raise Fault(f"an error has changed arrays: {error}") from error
                if state != [a.tobytes() for a in state_of(opt).values()]:
                    raise Fault(f"an error has changed the state: {error}") from error
                continue
            self.taken += opt.skipped == skipped
            self.left_out += opt.skipped != skipped

    def _step_of_model(self, way: str, grads: dict[str, np.ndarray | None]) -> None:
        opt, scale = self.opt, self.model.grad_scale
        given = {name: grad for name, grad in grads.items() if grad is not None}
        counts = opt.counts.sum()
        is_whole = opt.atomic == "all" and way != "step_tensor"
        before = (self.arena.copy(), self.remembered()) if is_whole else None
        try:
            if not given:
                report = opt.step(grads, scale)
            elif way == "measure":
                for name, grad in given.items():
                    opt.measure(name, grad, grad_scale=scale)
                report = opt.step(grad_scale=scale)
            elif way == "step_tensor":
                if not self._step_tensors(given):
                    return
                report = opt.step()
            elif way == "accumulate":
                opt.accumulate(grads)
                report = opt.step(grad_scale=scale)
            else:
                report = opt.step(grads, scale)
        except FloatingPointError as error:
            self.said.append(f"{type(error).__name__}: {error}")
            self.left_out += len(given)
            if before is not None and before[0].tobytes() != self.arena.tobytes():
                raise Fault(f"an error has changed arrays: {error}") from error
            if before is not None and before[1] != self.remembered():
                raise Fault(f"an error has changed the state: {error}") from error
            opt.discard_measured()
            if way == "accumulate":
                opt.accumulate(None)
            return
        numbers = [np.asarray(getattr(report, name), np.float64) for name in REPORTED]
        numbers.append(np.array([report.grad_norm, report.norm_limit or 0.0], np.float64))
        self.said.append(b"".join(x.tobytes() for x in numbers).hex())
        self.taken += int(opt.counts.sum() - counts)

    def _step_tensors(self, given: dict[str, np.ndarray]) -> bool:
        """Step tensor by tensor; whether any was."""
        any_stepped = False
        for name, grad in given.items():
            try:
                self.opt.step_tensor(name, grad, grad_scale=self.model.grad_scale)
                any_stepped = True
            except FloatingPointError as error:
                self.said.append(f"{name}: {error}")
                self.left_out += 1
        return any_stepped

    def _refused(self, k: int, spoilt: str) -> None:
        """Call the step with arguments that it has to refuse."""
        grads = self.grads[k]
        names = [name for name, grad in grads.items() if grad is not None]
        if not names:
            return
        name = names[(k * 7) % len(names)]
        param = self.params[name]
        if spoilt == "missing" and self.opt is None:
            return
        if spoilt == "overlap" and param.size == 0:
            return
        wrong: Any = {
            "shape": np.zeros((*param.shape, 2), np.float32),
            "dtype": np.zeros(param.shape, np.int32) if param.ndim else [1.0],
            "overlap": param,
        }.get(spoilt)
        if spoilt == "read-only":
            param.flags.writeable = False
            wrong = grads[name]
        try:
            error = self._unchanged(
                lambda: self._call_wrongly(name, wrong, grads, spoilt), f"step {k}, {spoilt}"
            )
        finally:
            param.flags.writeable = True
        if error is None:
            raise Fault(f"step {k}: {spoilt} of {name} was not refused")
        self.said.append(f"{type(error).__name__}: {error}")

    def _call_wrongly(self, name: str, wrong: Any, grads: dict[str, Any], spoilt: str) -> None:
        if self.opt is None:
            self.optimizers[name].update(self.params[name], wrong)
        elif spoilt == "missing":
            self.opt.step({other: grad for other, grad in grads.items() if other != name})
        else:
            self.opt.step({**grads, name: wrong}, self.model.grad_scale)
