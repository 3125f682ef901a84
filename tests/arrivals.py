"""A model with a tensor of every kind that measure can take ahead, and how conventions step it."""

import copy
import pickle

import numpy as np

from adafactor_native import Optimizer
from arrays import normal
from oracle.halves_reference import bfloat16, float16

# All but the last four have the 4096 elements from which measure takes the first sweep ahead.
SHAPES = {
    "panels": (300, 70),
    "tiles": (40, 3000),
    "vector": (5001,),
    "kernel": (80, 7, 3, 3),
    "heads": (3, 50, 40),
    "bias": (50,),
    "small": (9, 7),
    "scalar": (),
    "empty": (0, 4),
}

LAST_TWO = {"factored_axes": "last_two"}
RUNS = {
    "paper": {},
    "paper, lr by t": {"lr": lambda t: 0.5 / t, "relative_step": False, **LAST_TWO},
    "numpy": {"convention": "numpy"},
    "numpy, eps matters": {"convention": "numpy", "eps": 1e-2, **LAST_TWO},
    "huggingface": {"convention": "huggingface", "beta1": 0.9, "weight_decay": 0.1},
    "torch": {"convention": "torch", "weight_decay": 0.1, "maximize": True},
    "optax": {
        "convention": "optax",
        "learning_rate": lambda count: 0.5 / (count + 1),
        "min_dim_size_to_factor": 4,
        "momentum": 0.5,
        "weight_decay_rate": 1e-3,
    },
    "keras": {"convention": "keras", "weight_decay": 0.01},
    "t5x": {"convention": "t5x", "learning_rate": 0.1, "min_dim_size_to_factor": 4},
    "big_vision": {
        "convention": "big_vision",
        "lr": 0.1,
        "wd": 0.1,
        "schedule": lambda count: 1 / (count + 2),
        "min_dim_size_to_factor": 2,
    },
    "debiased": {"bias_correction": "beta2", "decay_rate": None, "beta2": 0.9, "lr": 0.1},
    "each matrix": {"rms_scope": "matrix", **LAST_TWO},
    "unfactored": {"factored_axes": "none", "beta1": 0.9},
}

# What params, gradients and state are of: the dtypes of both, and what an optimizer is told.
KINDS = {
    "float32": (np.float32, np.float32, {}),
    "float64": (np.float64, np.float64, {}),
    "float64 of float32": (np.float64, np.float32, {}),
    "bfloat16": (bfloat16, bfloat16, {}),
    "float16, stochastic": (float16, np.float32, {"rounding": "stochastic", "seed": 3}),
    "masters": (bfloat16, bfloat16, {"masters": "float32"}),
    "split": (bfloat16, float16, {"masters": "split"}),
    "float32 state": (np.float32, np.float32, {"state_dtype": "float32"}),
    "carried": (np.float32, np.float32, {"carry_param_rms": True}),
    "copies": (np.float32, bfloat16, {"copies": float16}),
}


def new_params(dtype=np.float32):
    return {name: normal(shape, dtype, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}


def gradients(t, dtype=np.float32):
    """At the second step, two have none."""
    grads = {
        name: normal(shape, dtype, seed=100 * t + i)
        for i, (name, shape) in enumerate(SHAPES.items())
    }
    return grads | ({"tiles": None, "bias": None} if t == 1 else {})


def one_by_one(take, grads, **options):
    """Give gradients to `opt.measure` or `opt.step_tensor`, in the order of a backward pass."""
    for name in reversed(list(grads)):
        if grads[name] is not None:
            take(name, grads[name], **options)


def optimizer(run="paper", kind="float32", **options):
    """An optimizer in two groups, which owns its params."""
    dtype, _, of_kind = KINDS[kind]
    params, of_kind = new_params(dtype), dict(of_kind)
    copies = of_kind.pop("copies", None)
    first = [{"params": {name: params.pop(name) for name in ("tiles", "vector", "bias")}}]
    groups = [*first, {"params": params, "clip_threshold": 0.5}]
    for group in groups if copies else ():
        group["copies"] = {name: param.astype(copies) for name, param in group["params"].items()}
    return Optimizer(groups, **{**RUNS[run], **of_kind, **options})


def all_of(opt):
    """The bits of all that steps change, by name."""
    arrays = {
        f"{kind}/{tensor.name}": array
        for tensor in opt.tensors
        for kind, array in {"param": tensor.param, "copy": tensor.copy, **tensor.state}.items()
        if array is not None
    }
    counts = {"counts": (opt.t, opt.skipped, opt.counts.tolist())}
    return counts | {key: array.tobytes() for key, array in arrays.items()}


def assert_same(opt, other):
    """Two optimizers are so to the bit; names what is not."""
    ours, theirs = all_of(opt), all_of(other)
    assert ours.keys() == theirs.keys()
    assert [key for key in theirs if ours[key] != theirs[key]] == []


def uses_of_state(opt, state, path):
    """Return calls of all that reads or writes the state as of the last step, or the tensors."""
    return (
        opt.state_dict,
        lambda: opt.save(path),
        lambda: opt.load_state_dict(state),
        lambda: opt.replace("tiles", np.ones_like(opt.params["tiles"])),
        lambda: opt.resize("panels", np.ones((301, 70), np.float32)),
        lambda: opt.remove("tiles"),
        lambda: opt.reset("panels"),
        lambda: copy.copy(opt),
        lambda: copy.deepcopy(opt),
        lambda: pickle.dumps(opt),
    )
