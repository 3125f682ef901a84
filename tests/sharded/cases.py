"""Steps of a model on one process and on ranks, and what must be the same: for threads, MPI and gloo."""

from __future__ import annotations

import hashlib

import numpy as np

from adafactor_native import Optimizer
from sharded.cuts import LAYOUTS, local, replicas

SHAPES = {"w": (200, 48), "wide": (40, 130), "k": (3, 24, 17), "b": (37,), "s": ()}
N_STEPS = 3

CONVENTIONS = {
    "paper": {},
    "numpy": {},
    "huggingface": {"lr": 1e-2, "relative_step": False, "beta1": 0.9, "weight_decay": 1e-2},
    "torch": {"weight_decay": 1e-2},
    "optax": {"learning_rate": 1e-2, "min_dim_size_to_factor": 8, "momentum": 0.9},
    "keras": {},
    "t5x": {"learning_rate": 1e-2},
    "big_vision": {"lr": 1e-2, "min_dim_size_to_factor": 8},
}


def arrays(dtype, seed, spread=1e4):
    """Return an array of each shape, with rows, and columns, of very different sizes."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in SHAPES.items():
        array = rng.standard_normal(shape)
        if len(shape) > 1:
            array *= np.geomspace(1, spread, shape[-2])[:, None] * np.geomspace(1, 3, shape[-1])
        made[name] = np.asarray(array / spread, dtype)
    return made


def one_process(convention, dtype, settings, grads_dtype=None):
    """Return the optimizer after its steps, and the reports of these."""
    opt = Optimizer(arrays(dtype, 0), convention, **settings)
    return opt, [opt.step(arrays(grads_dtype or dtype, 1 + step)) for step in range(N_STEPS)]


def on_rank(engine, layout, convention, dtype, settings, grads_dtype=None):
    """Return this rank's optimizer after the steps, and the reports; `engine` is any `comm`."""
    pieces = pieces_here(engine, layout)
    params = {
        name: local(array, pieces[name])
        for name, array in arrays(dtype, 0).items()
        if name in pieces
    }
    shards = {name: shard for name, (shard, _) in pieces.items() if shard is not None}
    opt = Optimizer(params, convention, comm=engine, shards=shards, **settings)
    reports = []
    for step in range(N_STEPS):
        grads = arrays(grads_dtype or dtype, 1 + step)
        reports.append(opt.step({name: local(grads[name], pieces[name]) for name in pieces}))
    return opt, reports


def pieces_here(engine, layout):
    """Return the piece of each tensor that this rank knows of."""
    cut = LAYOUTS[layout]
    pieces = {}
    for name, shape in SHAPES.items():
        can_be_cut = shape or layout in ("flat", "owned")
        pieces[name] = (cut if can_be_cut else replicas)(shape, engine.size)[engine.rank]
    return {name: piece for name, piece in pieces.items() if piece is not None}


def differences(engine, layout, opt, alone):
    """Return the largest difference of each tensor, by the largest change that one process made."""
    begins = arrays(np.float64, 0)
    found = {}
    for name, piece in pieces_here(engine, layout).items():
        expected = alone.params[name].astype(np.float64)
        change = np.abs(expected - begins[name]).max()
        here = local(expected, piece)
        found[name] = np.abs(opt.params[name] - here).max() / change if here.size else 0.0
    return found


def numbers_of(report):
    """Return a report as arrays that can be compared, tensors in the order of their names."""
    order = np.argsort(report.names)
    columns = ("rms_grad", "rms_u", "clip_divisor", "rms_param", "step_size", "stepped", "stuck")
    return {
        **{column: np.asarray(getattr(report, column), np.float64)[order] for column in columns},
        "rest": np.array([report.grad_norm, report.norm_limit, report.t, report.flags]),
    }


def digest(state, reports):
    """Return a hash of params, state and reports, whatever the order of tensors.

    Without the global norm, which adds up tensors in their order: that of whole tensors on some ranks
    each is not the order in one process.
    """
    parts = [state[key].tobytes() for key in sorted(state) if key != "header"]
    for report in reports:
        numbers = numbers_of(report)
        numbers["rest"] = numbers["rest"][1:]
        parts += [numbers[key].tobytes() for key in sorted(numbers)]
    return hashlib.sha256(b"".join(parts)).hexdigest()
