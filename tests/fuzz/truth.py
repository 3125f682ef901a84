"""Whether a step is the float64 reference's, within the roundings that it may take."""

from __future__ import annotations

from typing import Any

import numpy as np

from fuzz.models import HALVES, Model
from fuzz.runs import Fault, Run
from oracle import switches_reference as reference
from oracle.convention_settings import SETTINGS

# Of what a step changes, in units of the machine epsilon: sums of float32, or of float64.
NARROW, WIDE = 24, 400
# Where float64 squares of a whole line are lost, the line counts as one without a gradient.
EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "bfloat16": 2.0**-7, "float16": 2.0**-10}
TINY = {"float32": 2.0**-126, "float64": 1e-140, "bfloat16": 2.0**-126, "float16": 2.0**-14}
MOST = {"float32": 3.4e38, "float64": 1e300, "bfloat16": 3.3e38, "float16": 65000.0}


def settings_of(model: Model) -> dict[str, Any]:
    """The model's arguments as switches of the reference."""
    switches = SETTINGS[model.convention](**model.arguments)
    for name in ("masters", "momentum_dtype", "rounding", "state_dtype", "dtype_momentum"):
        switches.pop(name, None)
    return switches


class Before:
    """What the tensors to be compared hold before a step."""

    def __init__(self, run: Run, names: list[str]) -> None:
        states = run.states()
        self.names = names
        self.params = {name: number_of(run, name, states[name]) for name in names}
        self.states = {
            name: {
                k: np.array(a, np.float64) for k, a in states[name].items() if a.dtype.kind != "u"
            }
            for name in names
        }
        if run.opt is None:
            self.t, self.counts = 0, {n: run.optimizers[n].t for n in names}
        else:
            counts = dict(zip(run.opt.names, run.opt.counts.tolist()))
            self.t, self.counts = run.opt.t, {n: counts[n] for n in names}


def number_of(run: Run, name: str, state: dict[str, np.ndarray]) -> np.ndarray:
    """The param's numbers before they are rounded to halves, in float64."""
    param = run.params[name]
    if "master" in state:
        return np.array(state["master"], np.float64)
    if "low" in state:
        upper = np.ascontiguousarray(param).view(np.uint16).astype(np.uint32)
        low = np.ascontiguousarray(state["low"]).astype(np.uint16).view(np.int16)
        word = (upper << 16).astype(np.int64) + low
        return (word & 0xFFFFFFFF).astype(np.uint32).view(np.float32).astype(np.float64)
    return np.array(param, np.float64)


def check_step(run: Run, before: Before, k: int, lr_off: float = 1.0) -> int:
    """Compare the tensors that took step k with the reference; return how many.

    `lr_off` makes the reference a wrong one: a control.
    """
    model = run.model
    switches = settings_of(model)
    if not callable(switches.get("lr", 0.01)):
        switches["lr"] = switches.get("lr", 0.01) * lr_off
    truth = reference.Run({name: before.params[name] for name in before.names}, **switches)
    if (
        switches.get("eps", 0) is None
    ):  # the machine epsilon of the param's dtype; of halves float32's
        for name in before.names:
            is_wide = run.params[name].dtype == np.float64
            truth._switches[name]["eps"] = EPS["float64" if is_wide else "float32"]
    truth.t = before.t
    truth.counts = dict(before.counts)
    for name in before.names:
        truth.states[name] = as_reference(before.states[name], run.params[name].shape, switches)
    given = {
        name: np.array(grad, np.float64)
        for name in before.names
        if (grad := run.grads[k][name]) is not None
    }
    given = {name: grad for name, grad in given.items() if np.isfinite(grad).all()}
    clip = clip_of(run, k)
    if not clip > 1e-300:
        return 0
    with np.errstate(all="ignore"):
        truth.step(given, model.grad_scale / clip)
    states = run.states()
    compared = 0
    for name in given:
        if stepped(run, name) != before.counts[name] + 1:
            continue
        compared += check_tensor(run, name, states[name], before, truth, k)
    return compared


def stepped(run: Run, name: str) -> int:
    if run.opt is None:
        return int(run.optimizers[name].t)
    return int(run.opt.counts[run.opt.names.index(name)])


def clip_of(run: Run, k: int) -> float:
    """What max_grad_norm scales all gradients by."""
    limit = run.model.options.get("max_grad_norm")
    if limit is None:
        return 1.0
    with np.errstate(all="ignore"):
        squares = sum(
            float(np.sum(np.square(np.array(g, np.float64) / run.model.grad_scale)))
            for g in run.grads[k].values()
            if g is not None
        )
        norm = np.sqrt(squares)
        return min(1.0, float(limit / (norm + 1e-6))) if np.isfinite(norm) else 0.0


def as_reference(
    state: dict[str, np.ndarray], shape: tuple[int, ...], switches: dict[str, Any]
) -> reference.State:
    axes = reference.axes_to_factor(
        shape,
        switches.get("factored_axes", "matrix"),
        switches.get("min_dim_size_to_factor", 0),
    )
    exp_row, exp_col = state.get("exp_row"), state.get("exp_col")
    if (exp_row is not None) != (axes is not None):
        raise Fault(f"a tensor of shape {shape} is not factored as the reference factors it")
    if axes is not None:
        exp_row = np.moveaxis(exp_row[..., None], (-2, -1), axes)
        exp_col = np.moveaxis(exp_col[..., None, :], (-2, -1), axes)
    return reference.State(exp_row, exp_col, state.get("v"), state.get("m"))


def check_tensor(
    run: Run,
    name: str,
    state: dict[str, np.ndarray],
    before: Before,
    truth: reference.Run,
    k: int,
) -> int:
    param, old, expected = run.params[name], before.params[name], truth.params[name]
    if old.size == 0 or not np.isfinite(expected).all() or not np.isfinite(old).all():
        return 0
    grad = run.grads[k][name]
    assert grad is not None
    wide = np.float64 in (param.dtype, grad.dtype)
    units = WIDE * EPS["float64"] if wide else NARROW * EPS["float32"]
    switches = truth._at_this_step(name)
    # Means of squares that float32 rounds to 0, and roots of them, are no longer the reference's.
    for kind, mean in truth.state(name).items():
        stored = EPS[state[kind].dtype.name]
        most = MOST[state[kind].dtype.name]
        if not np.isfinite(mean).all() or np.max(np.abs(mean), initial=0) > most:
            return 0
        mine, scale = np.asarray(state[kind], np.float64), np.abs(mean)
        if kind == "m":
            scale = scale + np.abs(before.states[name]["m"]) + np.max(np.abs(mean), initial=0)
            if param.dtype != np.float64 and switches.get("momentum_of", "step") == "step":
                units = NARROW * EPS["float32"]  # of RMS(param), which is summed in float32
        off = np.abs(mine - mean) - (units + 1.01 * stored) * scale - TINY[state[kind].dtype.name]
        if not (np.max(off, initial=0) <= 0):
            raise Fault(f"step {k}: {kind} of {name} is not the reference's: off {np.max(off):.3g}")
        if kind != "m" and np.any((mean > 0) & (mean < TINY["float64"])):
            return 0  # nor is what is divided by the root
    dtype = "float32" if {"master", "low"} & state.keys() else param.dtype.name
    terms = truth.terms[name].values()
    if np.max(np.abs(expected)) > MOST[dtype]:
        return 0
    mine = number_of(run, name, state)
    if param.dtype != np.float64:  # RMS(param) is summed in float32
        wide, units = False, NARROW * EPS["float32"]
    # The terms' own sizes: with a large lr they cancel, a decay by 14 times param and a step against it.
    moved = sum(np.abs(term) for term in terms)
    if "m" in state:
        size = step_size_of(run, name)
        moved = moved + size * np.max(np.abs(before.states[name]["m"]), initial=0)
        moved = moved + np.max(np.abs(expected - old), initial=0)
    stochastic = run.model.arguments.get("rounding") == "stochastic"
    halves = mine.dtype in HALVES or dtype in ("bfloat16", "float16")
    budget = (
        units * moved
        + (1.01 if wide or (halves and stochastic) else 0.51)
        * EPS[dtype]
        * np.maximum(np.abs(old), np.abs(expected))
        + TINY[dtype] * (EPS[dtype] if halves else 1) * 1.01
    )
    if halves:  # which is found in float32
        budget = budget + EPS["float32"] * np.maximum(np.abs(old), np.abs(expected))
    worst = np.max(np.abs(mine - expected) / budget)
    if not worst <= 1:
        raise Fault(f"step {k}: {name} is off by {worst:.3g} times its budget")
    return 1


def step_size_of(run: Run, name: str) -> float:
    return 1.0 if run.model.arguments.get("momentum_of") != "u" else 100.0
