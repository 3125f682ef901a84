"""The truth for whole models: one step with every switch, in float64, slow and obvious.

`step` is one tensor's; `Run` takes a model through steps, with groups, counts and a global norm.
The formulas are Shazeer & Stern's (arXiv:1804.04235, Algorithms 4 to 6) with a switch wherever an
implementation departs from them. The defaults are the seed's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from oracle.array_reference import product


@dataclass(frozen=True)
class State:
    """What one tensor remembers; None before the first step.

    exp_row and exp_col have as many axes as param, of length 1 where they are means: exp_row along
    the column axis (it has one number for each row), exp_col along the row axis.
    """

    exp_row: np.ndarray | None = None
    exp_col: np.ndarray | None = None
    v: np.ndarray | None = None
    m: np.ndarray | None = None


@np.errstate(all="ignore")
def step(
    param,
    grad,
    state,
    *,
    t=1,
    lr=1e-2,
    schedule=1.0,
    beta2=0.999,
    decay_rate=None,
    decay_offset=0,
    bias_correction=False,
    eps=1e-30,
    eps_mode="both",
    factored_axes="matrix",
    min_dim_size_to_factor=0,
    clip_threshold=1.0,
    rms_scope="tensor",
    scale_parameter=True,
    eps_scale=0.0,
    relative_step=False,
    warmup_init=False,
    beta1=None,
    momentum_of="step",
    weight_decay=0.0,
    weight_decay_mode="lr",
    weight_decay_lr_exponent=None,
    scale_after_decay=False,
    maximize=False,
    grad_scale=1.0,
    state_dtype=np.float64,
    terms=None,
):
    """Return (param, state) after step number t, in float64; nothing given is changed.

    lr and schedule are their values at this step. Divisions 0/0 give NaN. A tensor without elements
    is left as it is. With a state_dtype of float32 the running means returned are rounded to it;
    param moves by what they are before that. `terms`, a dict, is given what is subtracted from param:
    "decay" and "update".
    """
    param = np.array(param, np.float64)
    g = np.array(grad, np.float64) / grad_scale * (-1 if maximize else 1)
    if param.size == 0:
        return param, state
    axes = axes_to_factor(param.shape, factored_axes, min_dim_size_to_factor)
    matrices = axes if rms_scope == "matrix" else None

    # Second moment
    if bias_correction == "beta2":
        beta2 = beta2 * (1 - beta2 ** (t - 1)) / (1 - beta2**t)
    if decay_rate is not None:
        beta2 = min(beta2, 1 - float(max(t - decay_offset, 1)) ** decay_rate)
    q = g * g + (eps if eps_mode in ("both", "grad_squared") else 0)
    if axes:
        row_axis, col_axis = axes
        exp_row = average(state.exp_row, beta2, mean(q, (col_axis,)))
        exp_col = average(state.exp_col, beta2, mean(q, (row_axis,)))
        state = replace(state, exp_row=exp_row, exp_col=exp_col)
        mean_row = mean(exp_row, (row_axis,))
        if eps_mode == "root":
            root = product(np.sqrt(exp_row + eps) / np.sqrt(mean_row), np.sqrt(exp_col + eps))
        elif eps_mode == "clamp":
            floored = np.maximum(mean_row, eps)
            root = product(np.sqrt(exp_row) / np.sqrt(floored), np.sqrt(exp_col))
        else:
            root = product(np.sqrt(exp_row) / np.sqrt(mean_row), np.sqrt(exp_col))
    else:
        v = average(state.v, beta2, q)
        state = replace(state, v=v)
        root = np.sqrt(v + eps) if eps_mode == "root" else np.sqrt(v)

    state = replace(
        state,
        **{
            kind: np.asarray(running, state_dtype).astype(np.float64)
            for kind in ("exp_row", "exp_col", "v")
            if (running := getattr(state, kind)) is not None
        },
    )

    # Update, clipped
    if eps_mode == "both":
        root = root + eps
    if eps_mode == "clamp":
        root = np.maximum(root, eps)
    u = g / root
    if clip_threshold is not None:
        u = u / np.maximum(1, rms(u, matrices) / clip_threshold)

    # Step size
    lr = lr * schedule
    rate = lr
    if relative_step:
        rate = min(1e-6 * t if warmup_init else lr, 1 / np.sqrt(t))
    if bias_correction is True:
        rate = rate * np.sqrt(1 - beta2**t) / (1 - beta2**t)
    scale = np.maximum(eps_scale, rms(param, matrices)) if scale_parameter else 1.0

    # Weight decay
    if weight_decay_lr_exponent is not None:
        keep = 1 - weight_decay * lr**weight_decay_lr_exponent
    else:
        factor = {"lr": lr, "step": rate * scale, "alone": 1, "schedule": schedule}
        keep = 1 - weight_decay * factor[weight_decay_mode]
    if scale_after_decay and scale_parameter:
        scale = np.maximum(eps_scale, rms(keep * param, matrices))

    if beta1 is None:
        update = rate * scale * u
    elif momentum_of == "step":
        update = m = average(state.m, beta1, rate * scale * u)
        state = replace(state, m=m)
    else:
        m = average(state.m, beta1, u)
        update = rate * scale * m
        state = replace(state, m=m)
    if terms is not None:
        terms.update(decay=(1 - keep) * param, update=update)
    return keep * param - update, state


def axes_to_factor(shape, factored_axes, min_dim_size_to_factor):
    """Return (row axis, column axis), or None for a tensor that keeps a full v."""
    if factored_axes == "none" or len(shape) < 2:
        return None
    if factored_axes == "matrix" and len(shape) > 2:
        return None
    if factored_axes in ("matrix", "last_two"):
        axes = len(shape) - 2, len(shape) - 1
    elif factored_axes == "two_largest":
        by_size = sorted(range(len(shape)), key=lambda axis: shape[axis])  # ties: the later, larger
        axes = by_size[-2], by_size[-1]
    else:
        axes = tuple(range(len(shape))[axis] for axis in factored_axes)
    return axes if min(shape[axis] for axis in axes) >= min_dim_size_to_factor else None


def average(old, beta, new):
    """Running mean; the one before the first step is 0."""
    return (1 - beta) * new + (0 if old is None else beta * old)


def rms(x, axes=None):
    """Root of the mean square over these axes, which remain with length 1; over all: a number."""
    return np.sqrt(mean(x * x, axes))


def mean(x, axes=None):
    """Mean over these axes, which remain with length 1; over all: a number.

    NumPy adds in pairs along a last axis that lies without gaps, but one by one along others, where the
    means of 20,000 equal numbers are off by a thousand units in the last place.
    """
    if axes is None:
        return np.mean(np.ravel(x))
    lines = np.moveaxis(x, axes, range(-len(axes), 0))
    kept = lines.shape[: -len(axes)]
    return np.expand_dims(np.ascontiguousarray(lines).reshape(*kept, -1).mean(-1), axes)


class Run:
    """A model on its way: what Optimizer keeps and does, in float64.

    Parameters
    ----------
    groups : dict of name -> array, or list of {"params": such a dict, switch: value, ...}
    max_grad_norm : float or None
    **switches
        Those of `step`, and t_scope, weight_decay_mask (a dict of name -> bool); lr, schedule and
        weight_decay may be functions of the model's t. eps=None: the machine epsilon of each
        array's dtype.

    Attributes
    ----------
    params : dict of name -> ndarray of float64
    states : dict of name -> State
    t : int
    counts : dict of name -> int
        Steps of the model and of each tensor.
    terms : dict of name -> dict
        What each tensor's latest step was a difference of, as `step` says.
    """

    def __init__(self, groups, *, max_grad_norm=None, **switches):
        self.params, self.states, self.counts, self.terms = {}, {}, {}, {}
        self.t = 0
        self._max_grad_norm = max_grad_norm
        self._switches = {}
        for group in [{"params": groups}] if isinstance(groups, dict) else groups:
            self.add({**switches, **group})

    def add(self, group):
        """Add a group of tensors, with a state of their own."""
        switches = dict(group)
        for name, param in switches.pop("params").items():
            assert name not in self.params
            self.params[name] = np.array(param, np.float64)
            self.states[name], self.counts[name] = State(), 0
            self._switches[name] = dict(switches)
            if switches.get("eps", 0) is None:
                self._switches[name]["eps"] = float(np.finfo(param.dtype).eps)

    def set(self, names, **switches):
        """Change switches of these tensors for all steps to come."""
        for name in names:
            self._switches[name].update(switches)

    def step(self, grads, grad_scale=1.0):
        """Take one step with grads, a dict of name -> array or None."""
        self.t += 1
        given = {name: grad for name, grad in grads.items() if grad is not None}
        if self._max_grad_norm is not None:
            squares = (
                np.sum(np.square(np.array(g, np.float64) / grad_scale)) for g in given.values()
            )
            norm = np.sqrt(sum(squares))
            grad_scale = grad_scale / min(1, self._max_grad_norm / (norm + 1e-6))
        for name, grad in given.items():
            self.counts[name] += 1
            self.params[name], self.states[name] = step(
                self.params[name],
                grad,
                self.states[name],
                grad_scale=grad_scale,
                terms=self.terms.setdefault(name, {}),
                **self._at_this_step(name),
            )

    def state(self, name):
        """Return what a tensor that has stepped remembers, by kind, as Optimizer keeps it.

        exp_row and exp_col have batch axes, then one of rows or of columns.
        """
        switches, kept = self._switches[name], self.states[name]
        rule, least = (
            switches.get("factored_axes", "matrix"),
            switches.get("min_dim_size_to_factor", 0),
        )
        axes = axes_to_factor(self.params[name].shape, rule, least)
        arrays = {"v": kept.v, "m": kept.m}
        if axes:
            arrays["exp_row"] = np.moveaxis(kept.exp_row, axes, (-2, -1))[..., 0]
            arrays["exp_col"] = np.moveaxis(kept.exp_col, axes, (-2, -1))[..., 0, :]
        return {kind: array for kind, array in arrays.items() if array is not None}

    def _at_this_step(self, name):
        switches = dict(self._switches[name])
        t_scope = switches.pop("t_scope", "tensor")
        switches["t"] = self.t if t_scope == "model" else self.counts[name]
        for of_t in ("lr", "schedule", "weight_decay"):
            if callable(switches.get(of_t)):
                switches[of_t] = switches[of_t](self.t)
        mask = switches.pop("weight_decay_mask", None)
        if mask is not None and not mask[name]:
            switches["weight_decay"] = 0.0
        return switches
