"""What is compared: options of a peer, and what Optimizer is given to do the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from oracle.convention_settings import SETTINGS
from oracle.switches_reference import Run
from peers import tensors

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Peer:
    """A function `run(groups, steps, **options)` of a module here, and what it needs installed.

    tolerance : allowed error in float64, in units of the largest parameter
    """

    module: str
    packages: tuple[str, ...]
    tolerance: float


ROUNDING = 1e-12
FLOAT32_CONSTANTS = 3e-7  # beta2 in optax and its kin, lr and more in keras

PEERS = {
    "torch_optim": Peer("torch_optimizers", ("torch",), ROUNDING),
    "huggingface": Peer("torch_optimizers", ("torch", "transformers"), ROUNDING),
    "timm": Peer("torch_optimizers", ("torch", "timm"), ROUNDING),
    "timm_big_vision": Peer("torch_optimizers", ("torch", "timm"), ROUNDING),
    "pytorch_optimizer": Peer("torch_optimizers", ("torch", "pytorch_optimizer"), ROUNDING),
    "optax": Peer("optax_chains", ("jax", "optax"), FLOAT32_CONSTANTS),
    "big_vision": Peer("optax_chains", ("jax", "optax"), FLOAT32_CONSTANTS),
    "t5x": Peer("optax_chains", ("jax", "optax"), FLOAT32_CONSTANTS),
    "keras": Peer("keras_adafactor", ("jax", "optax", "keras"), FLOAT32_CONSTANTS),
}


@dataclass(frozen=True)
class Group:
    """Tensors with options of their own, added to the case's."""

    names: Sequence[str]
    ours: Options
    theirs: Options | None = None  # None: the same


@dataclass(frozen=True)
class Case:
    """One comparison.

    groups : the first groups; all other tensors are in a last one
    absent : name -> indices of the steps in which the tensor has no gradient
    """

    peer: str
    convention: str
    ours: Options = field(default_factory=dict)
    theirs: Options | None = None  # None: the same
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: tensors.SHAPES)
    groups: Sequence[Group] = ()
    absent: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def our_groups(self, dtype):
        """Return groups of new parameters, with the options in which they differ from the case."""
        return self._with_params([group.ours for group in self.groups], dtype)

    def their_groups(self, dtype):
        return self._with_params([theirs_of(group) for group in self.groups], dtype)

    def _with_params(self, options, dtype):
        rest = tensors.params(self.shapes, dtype)
        groups = [
            {"params": {name: rest.pop(name) for name in group.names}, **own}
            for group, own in zip(self.groups, options)
        ]
        return [*groups, {"params": rest}]

    def gradients(self, dtype):
        """Return name -> gradient or None for each step."""
        # Of a dead row and a dead column, keras makes 0 / 0 in float32
        dead = dtype == np.float64 or self.peer != "keras"
        steps = tensors.gradients(self.shapes, dtype, dead)
        for name, indices in self.absent.items():
            for index in indices:
                steps[index][name] = None
        return steps

    def reference(self, dtype):
        """Return the reference's run, before its first step, with parameters that are of dtype."""
        settings = SETTINGS[self.convention]
        groups = []
        for group in self.our_groups(dtype):
            params = group.pop("params")
            groups.append({"params": params, **settings(**{**self.ours, **group})})
        return Run(groups)


def theirs_of(options):
    """Return the peer's options of a case or a group."""
    return options.ours if options.theirs is None else options.theirs


def falling(t):
    """Learning rate at step t."""
    return 0.1 / (t + 3)


def counted(count):
    """Learning rate after count steps."""
    return 0.1 / (count + 4)


def rising(count):
    return (count + 1) / 15


def named(*names):
    return {name: tensors.SHAPES[name] for name in names}


# One of each kind, for JAX compiles every shape for a moment. Below, a decay rate of 3 takes beta2 past
# any cap in 20 steps, and a rate of 0.5 is soon above 1/sqrt(t).
FEW = named(
    "scalar", "tall", "largest apart", "kernel, largest first", "late gradient", "near zero"
)
MATRICES = {name: shape for name, shape in tensors.SHAPES.items() if len(shape) <= 2}
NOT_EMPTY = {name: shape for name, shape in tensors.SHAPES.items() if 0 not in shape}
MASK = {name: index % 2 == 0 for index, name in enumerate(FEW)}
SOME_ABSENT = {"vector": range(5), "stack": (2, 3, 11), "kernel": (19,), "tall": range(1, 20)}

# timm factors the first two axes of what has more, if both are above the size, else the last two
ABOVE_3 = [name for name, shape in tensors.SHAPES.items() if len(shape) > 2 and min(shape[:2]) > 3]
FIRST_AXES = [Group(ABOVE_3, {"factored_axes": (0, 1)}, {})]

CASES = {
    # convention "torch"; torch divides by zero where a tensor has no elements
    "torch: defaults": Case("torch_optim", "torch", shapes=NOT_EMPTY),
    "torch: every number": Case(
        "torch_optim",
        "torch",
        {"lr": 0.3, "beta2_decay": -3.0, "eps": (1e-3, 1e-2), "d": 1.5, "weight_decay": 0.1},
        shapes=NOT_EMPTY,
    ),
    "torch: maximize, foreach": Case(
        "torch_optim",
        "torch",
        {"maximize": True, "foreach": True, "weight_decay": 0.01},
        shapes=NOT_EMPTY,
    ),
    "torch: groups, no gradients, schedule": Case(
        "torch_optim",
        "torch",
        {"lr": falling},
        shapes=NOT_EMPTY,
        groups=[
            Group(["scalar", "wide"], {"lr": 0.5, "weight_decay": 0.1}),
            Group(["kernel", "vector"], {"eps": (1e-2, 0.1)}),
        ],
        absent=SOME_ABSENT,
    ),
    # convention "huggingface"
    "huggingface: defaults": Case("huggingface", "huggingface"),
    "huggingface: warm-up": Case("huggingface", "huggingface", {"warmup_init": True}),
    "huggingface: fixed lr, decay": Case(
        "huggingface",
        "huggingface",
        {"lr": 0.5, "relative_step": False, "weight_decay": 0.1, "clip_threshold": 0.5},
    ),
    "huggingface: no scale": Case(
        "huggingface",
        "huggingface",
        {"lr": 0.02, "relative_step": False, "scale_parameter": False, "weight_decay": 0.1},
    ),
    "huggingface: momentum, decay": Case(
        "huggingface", "huggingface", {"beta1": 0.9, "weight_decay": 0.1}
    ),
    "huggingface: momentum, schedule": Case(
        "huggingface", "huggingface", {"lr": falling, "relative_step": False, "beta1": 0.8}
    ),
    "huggingface: eps, decay rate": Case(
        "huggingface", "huggingface", {"eps": (1e-6, 1e-2), "decay_rate": -3.0}
    ),
    "huggingface: groups, no gradients": Case(
        "huggingface",
        "huggingface",
        {"beta1": 0.9},
        groups=[
            Group(["scalar", "wide"], {"beta1": None, "warmup_init": True}),
            Group(["kernel", "vector"], {"relative_step": False, "lr": falling}),
        ],
        absent=SOME_ABSENT,
    ),
    "timm: defaults": Case(
        "timm",
        "huggingface",
        {"min_dim_size_to_factor": 17},
        {},
        tensors.AROUND_16,
        [Group(["batched"], {"factored_axes": (0, 1)}, {})],
    ),
    "timm: warm-up": Case(
        "timm",
        "huggingface",
        {"warmup_init": True, "min_dim_size_to_factor": 4},
        {"warmup_init": True, "min_dim_size_to_factor": 3},
        groups=FIRST_AXES,
    ),
    "timm: lr, momentum, decay": Case(
        "timm",
        "huggingface",
        {
            "lr": falling,
            "relative_step": False,
            "scale_parameter": False,
            "beta1": 0.9,
            "weight_decay": 0.1,
            "clip_threshold": 0.7,
            "min_dim_size_to_factor": 4,
        },
        {
            "lr": falling,
            "betas": (0.9, 0.999),
            "weight_decay": 0.1,
            "clip_threshold": 0.7,
            "min_dim_size_to_factor": 3,
        },
        groups=FIRST_AXES,
        absent=SOME_ABSENT,
    ),
    "pytorch_optimizer: cap of beta2": Case(
        "pytorch_optimizer",
        "huggingface",
        {"beta2": 0.7, "beta1": 0.9, "weight_decay": 0.1},
        {"betas": (0.9, 0.7), "weight_decay": 0.1},
    ),
    "pytorch_optimizer: warm-up, maximize": Case(
        "pytorch_optimizer",
        "huggingface",
        {"warmup_init": True, "maximize": True},
        {"warmup_init": True, "maximize": True, "betas": (None, 0.999)},
    ),
    "pytorch_optimizer: decay alone": Case(
        "pytorch_optimizer",
        "huggingface",
        {
            "lr": 0.02,
            "relative_step": False,
            "scale_parameter": False,
            "weight_decay": 0.01,
            "weight_decay_mode": "alone",
        },
        {
            "lr": 0.02,
            "relative_step": False,
            "scale_parameter": False,
            "weight_decay": 0.01,
            "fixed_decay": True,
            "betas": (None, 0.999),
        },
    ),
    "pytorch_optimizer: no gradients": Case(
        "pytorch_optimizer",
        "huggingface",
        {"t_scope": "model", "beta1": 0.9, "clip_threshold": 0.7},
        {"foreach": False, "betas": (0.9, 0.999), "clip_threshold": 0.7},
        absent=SOME_ABSENT,
    ),
    # convention "paper", where it is also others' own
    "paper: as huggingface": Case("huggingface", "paper", shapes=MATRICES),
    "paper: as huggingface, warm-up": Case(
        "huggingface", "paper", {"warmup_init": True, "decay_rate": -3.0}, shapes=MATRICES
    ),
    "paper: as keras": Case(
        "keras", "paper", {}, {"learning_rate": 1e-2}, named("scalar", "tall", "late gradient")
    ),
    # convention "optax"
    "optax: defaults": Case("optax", "optax", shapes=tensors.AROUND_128),
    "optax: every shape": Case(
        "optax", "optax", {"learning_rate": 0.1, "min_dim_size_to_factor": 3}
    ),
    "optax: momentum, decay, mask": Case(
        "optax",
        "optax",
        {
            "learning_rate": counted,
            "min_dim_size_to_factor": 2,
            "momentum": 0.9,
            "weight_decay_rate": 0.01,
            "weight_decay_mask": MASK,
            "clipping_threshold": 0.5,
        },
        shapes=FEW,
    ),
    "optax: unfactored, no scale, no clip": Case(
        "optax",
        "optax",
        {
            "learning_rate": 0.5,
            "factored": False,
            "multiply_by_parameter_scale": False,
            "clipping_threshold": None,
            "decay_rate": 0.5,
        },
        shapes=FEW,
    ),
    "optax: offset": Case(
        "optax",
        "optax",
        {
            "learning_rate": 0.1,
            "min_dim_size_to_factor": 5,
            "decay_offset": 5,
            "weight_decay_rate": 0.01,
            "eps": 1e-6,
        },
        shapes=FEW,
    ),
    # convention "t5x"
    "t5x: defaults": Case("t5x", "t5x", {"learning_rate": 0.05}, shapes=tensors.AROUND_128),
    "t5x: every shape": Case("t5x", "t5x", {"learning_rate": 0.1, "min_dim_size_to_factor": 2}),
    "t5x: momentum, decay": Case(
        "t5x",
        "t5x",
        {
            "learning_rate": counted,
            "min_dim_size_to_factor": 2,
            "beta1": 0.9,
            "weight_decay_rate": 0.01,
            "clipping_threshold": 0.5,
        },
        shapes=FEW,
    ),
    "t5x: decay by lr": Case(
        "t5x",
        "t5x",
        {
            "learning_rate": counted,
            "min_dim_size_to_factor": 3,
            "weight_decay_rate": 0.3,
            "weight_decay_rate_lr_exponent": 2.0,
            "epsilon1": 1e-6,
            "epsilon2": 1e-2,
        },
        shapes=FEW,
    ),
    "t5x: offset, decay by lr alone": Case(
        "t5x",
        "t5x",
        {
            "learning_rate": 0.5,
            "factored": False,
            "multiply_by_parameter_scale": False,
            "clipping_threshold": None,
            "step_offset": 5,
            "decay_rate": 0.5,
            "weight_decay_rate_lr_exponent": 3.0,
        },
        shapes=FEW,
    ),
    # convention "big_vision"
    "big_vision: defaults": Case(
        "big_vision", "big_vision", {"lr": 0.05}, shapes=tensors.AROUND_32
    ),
    "big_vision: every shape": Case(
        "big_vision",
        "big_vision",
        {"lr": 0.05, "wd": 0.01, "schedule": rising, "min_dim_size_to_factor": 2},
    ),
    "big_vision: cap, offset, clip": Case(
        "big_vision",
        "big_vision",
        {
            "lr": 0.05,
            "min_dim_size_to_factor": 3,
            "beta2_cap": 0.8,
            "decay_offset": 5,
            "decay_rate": 0.9,
            "clipping_threshold": 0.7,
            "momentum": 0.5,
            "eps": 1e-6,
        },
        shapes=FEW,
    ),
    "big_vision: no momentum": Case(
        "big_vision",
        "big_vision",
        {"lr": 0.5, "wd": 0.01, "momentum": None, "min_dim_size_to_factor": 3},
        shapes=FEW,
    ),
    "timm_big_vision: defaults": Case(
        "timm_big_vision",
        "big_vision",
        {"lr": 0.05, "min_dim_size_to_factor": 16},
        {"lr": 0.05},
        tensors.AROUND_16,
    ),
    "timm_big_vision: decay by lr": Case(
        "timm_big_vision",
        "big_vision",
        {"lr": 0.05, "wd": 0.1, "weight_decay_mode": "lr", "min_dim_size_to_factor": 3},
        {"lr": 0.05, "weight_decay": 0.1, "min_dim_size_to_factor": 3},
    ),
    "timm_big_vision: decay alone, offset": Case(
        "timm_big_vision",
        "big_vision",
        {
            "lr": 0.05,
            "wd": 0.01,
            "min_dim_size_to_factor": 2,
            "decay_offset": 5,
            "decay_rate": 3.0,
        },
        {
            "lr": 0.05,
            "weight_decay": 0.01,
            "unscaled_wd": True,
            "min_dim_size_to_factor": 2,
            "decay_offset": 5,
            "decay_rate": 3.0,
        },
    ),
    "timm_big_vision: cap, clip, groups, no gradients": Case(
        "timm_big_vision",
        "big_vision",
        {
            "lr": 0.05,
            "min_dim_size_to_factor": 2,
            "beta2_cap": 0.7,
            "clipping_threshold": 0.7,
            "eps": 1e-6,
            "t_scope": "tensor",
        },
        {
            "lr": 0.05,
            "min_dim_size_to_factor": 2,
            "beta2_cap": 0.7,
            "clipping_threshold": 0.7,
            "eps": 1e-6,
        },
        groups=[Group(["scalar", "kernel"], {"momentum": None, "lr": 0.01})],
        absent=SOME_ABSENT,
    ),
    # convention "keras"
    "keras: every shape": Case("keras", "keras", {"learning_rate": 0.1}),
    "keras: defaults": Case("keras", "keras", shapes=FEW),
    "keras: every number": Case(
        "keras",
        "keras",
        {
            "learning_rate": 0.3,
            "beta_2_decay": -3.0,
            "epsilon_1": 1e-6,
            "epsilon_2": 1e-2,
            "clip_threshold": 0.7,
            "weight_decay": 0.1,
        },
        shapes=FEW,
    ),
    "keras: schedule": Case(
        "keras", "keras", {"learning_rate": counted, "weight_decay": 0.1}, shapes=FEW
    ),
}
