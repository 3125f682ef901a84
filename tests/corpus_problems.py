"""The problems of the corpus: the product of the paths a step can take, each with its convention.

A problem is a model of a few small tensors and how it is stepped. Its name says what it is made of
and is the key of its hash in data/corpus.json.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from buffers import LAYOUTS

DTYPES = ("float32", "float64", "bfloat16", "float16")
HALVES = ("bfloat16", "float16")

# A matrix whose rows are summed at once, one whose columns are, and what else is stepped apart.
SHAPES = {
    "rows": (131, 77),
    "cols": (6, 1100),
    "batch": (3, 20, 33),
    "kernel": (5, 5, 3, 3),
    "vector": (1500,),
    "scalar": (),
}


@dataclass(frozen=True)
class Tensor:
    """The layouts are names of `buffers.LAYOUTS`; param's is that of the copy, too."""

    shape: tuple[int, ...]
    param: str = "float32"
    grad: str = "float32"
    copy: str | None = None
    layout: str = "C"
    grad_layout: str = "C"


@dataclass(frozen=True)
class Problem:
    """A model and how it is stepped.

    Attributes
    ----------
    tensors : tuple of Tensor
    convention : str or None
        None: an `AdaFactor`, of the only tensor.
    arguments : mapping
        The optimizer's own.
    grads : str
        A key of `corpus.GRADS`: what the gradients look like.
    steps : int
    grad_scale : float
    without : int or None
        The tensor that has no gradient in the second step.
    written : str or None
        Whether params are doubled between two steps, "told" or "untold".
    param_scale : float
    """

    tensors: tuple[Tensor, ...]
    convention: str | None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    grads: str = "dead lines"
    steps: int = 4
    grad_scale: float = 1.0
    without: int | None = None
    written: str | None = None
    param_scale: float = 1.0


Named = Iterator[tuple[str, Problem]]


def model(*shapes: tuple[int, ...], **like: Any) -> tuple[Tensor, ...]:
    """Tensors of these shapes, by default one of each kind, that are alike in all else."""
    return tuple(Tensor(shape, **like) for shape in shapes or SHAPES.values())


def halves_per_second_step(t: int) -> float:
    return 0.5 / (1 + t // 2)


def one_array() -> Named:
    """AdaFactor, in C order: the runs that were kept first."""
    shapes = [(131, 77), (64, 3000), (2100, 5), (40, 50, 3), (5000,)]
    singles = ("float32", "float64")
    for shape, param, grad in itertools.product(shapes, singles, singles):
        for eps in (1e-30, 1e-4, 1e-38):
            problem = Problem(model(shape, param=param, grad=grad), None, {"eps": eps}, "plain")
            yield f"{shape} {param} {grad} {eps}", problem
    options: dict[str, dict[str, Any]] = {
        "unscaled": {"scale_parameter": False},
        "unclipped": {"clip_threshold": None},
        "carried": {"carry_param_rms": True},
        "stochastic": {"rounding": "stochastic", "seed": 5},
        "propagating": {"nonfinite": "propagate", "beta2": 0.5},
    }
    for shape, dtype, name in itertools.product([(131, 77), (1500,)], DTYPES, options):
        tensor = Tensor(shape, dtype, "float32" if dtype == "float64" else dtype)
        yield f"{name} {shape} {dtype}", Problem((tensor,), None, options[name])


def dtypes() -> Named:
    pairs = list(itertools.product(DTYPES, DTYPES))
    for (param, grad), shape in itertools.product(pairs, SHAPES):
        tensors = model(SHAPES[shape], param=param, grad=grad)
        arguments = {"factored_axes": "last_two"}
        yield f"{param} {grad} {shape}", Problem(tensors, "paper", arguments)
    variants: dict[str, dict[str, Any]] = {
        "decayed": {"weight_decay": 0.1},
        "direct": {"eps": 1e-3, "weight_decay": 0.1, "beta2": 0.9},
        "wide": {"eps": 0.0, "beta1": 0.9, "clip_threshold": 0.1},
    }
    for (param, grad), name in itertools.product(pairs, variants):
        arguments = {"factored_axes": "last_two", **variants[name]}
        problem = Problem(model(param=param, grad=grad), "seed", arguments)
        yield f"{param} {grad} {name}", problem


def roundings() -> Named:
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "decayed": {"weight_decay": 0.1},
        "beta1": {"beta1": 0.9, "weight_decay": 0.1},
        "direct": {"eps": 1e-3},
        "bfloat16 beta1": {"beta1": 0.9, "momentum_dtype": "bfloat16"},
    }
    common = {"factored_axes": "last_two", "seed": 11}
    for copy, grad, rounding in itertools.product(HALVES, DTYPES, ("nearest", "stochastic")):
        for name, more in variants.items():
            arguments = {**common, "rounding": rounding, **more}
            problem = Problem(model(grad=grad, copy=copy), "seed", arguments)
            yield f"copy {copy} {grad} {rounding} {name}", problem
    for param, grad in itertools.product(HALVES, DTYPES):
        for name, more in variants.items():
            arguments = {**common, "rounding": "stochastic", **more}
            problem = Problem(model(param=param, grad=grad), "seed", arguments)
            yield f"stochastic {param} {grad} {name}", problem


def masters() -> Named:
    for param, grad, rounding in itertools.product(HALVES, DTYPES, ("nearest", "stochastic")):
        arguments = {"masters": "float32", "rounding": rounding, "beta1": 0.9}
        problem = Problem(model(param=param, grad=grad), "huggingface", arguments)
        yield f"float32 {param} {grad} {rounding}", problem
    tensors = model(param="float32", grad="bfloat16")
    yield "float32 float32 bfloat16", Problem(tensors, "paper", {"masters": "float32"})
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "decay": {"weight_decay": 0.1},
        "beta1": {"beta1": 0.9, "momentum_dtype": "bfloat16"},
        "direct": {"eps": 1e-3, "eps_mode": "seed"},
    }
    for grad, name in itertools.product(DTYPES, variants):
        arguments = {"masters": "split", "factored_axes": "last_two", **variants[name]}
        problem = Problem(model(param="bfloat16", grad=grad), "paper", arguments)
        yield f"split {grad} {name}", problem


def momentum() -> Named:
    singles = [(param, m) for param in ("float32", *HALVES) for m in ("float32", "bfloat16")]
    for (param, m), of, decay in itertools.product(
        [*singles, ("float64", "float64")], ("step", "u"), (0.0, 0.1)
    ):
        for grad in dict.fromkeys((param, "float32")):
            arguments = {
                "beta1": 0.9,
                "momentum_dtype": m,
                "momentum_of": of,
                "weight_decay": decay,
                "factored_axes": "last_two",
            }
            problem = Problem(model(param=param, grad=grad), "paper", arguments)
            yield f"{param} {grad} {m} of {of}, decay {decay}", problem


# For each convention what it is given besides its defaults, without and with decay and momentum.
ARGUMENTS: dict[str, dict[str, dict[str, Any]]] = {
    "seed": {
        "plain": {},
        "decayed": {"lr": 0.1, "beta1": 0.9, "weight_decay": 0.1},
        "corrected": {"bias_correction": True, "factored_axes": "last_two"},
    },
    "paper": {
        "plain": {},
        "decayed": {"beta1": 0.9, "weight_decay": 0.1},
        "warm": {"warmup_init": True, "factored_axes": "two_largest", "decay_offset": 2},
    },
    "huggingface": {
        "plain": {},
        "decayed": {"beta1": 0.9, "weight_decay": 0.1, "warmup_init": True},
        "by lr": {"lr": halves_per_second_step, "relative_step": False, "scale_parameter": False},
    },
    "torch": {
        "plain": {},
        "decayed": {"weight_decay": 0.1, "lr": 0.05, "d": 1.5},
        "maximizing": {"maximize": True, "eps": (1e-20, 1e-2)},
    },
    "optax": {
        "plain": {"learning_rate": 0.1, "min_dim_size_to_factor": 4},
        "decayed": {
            "learning_rate": halves_per_second_step,
            "min_dim_size_to_factor": 3,
            "momentum": 0.5,
            "weight_decay_rate": 0.1,
            "decay_offset": 1,
        },
        "unfactored": {"factored": False, "multiply_by_parameter_scale": False},
    },
    "keras": {
        "plain": {},
        "decayed": {"learning_rate": 0.1, "relative_step": False, "weight_decay": 0.1},
    },
    "t5x": {
        "plain": {"learning_rate": 0.1, "min_dim_size_to_factor": 3},
        "decayed": {
            "learning_rate": halves_per_second_step,
            "min_dim_size_to_factor": 3,
            "beta1": 0.9,
            "weight_decay_rate_lr_exponent": 2.0,
        },
    },
    "big_vision": {
        "plain": {"lr": 0.1, "min_dim_size_to_factor": 3},
        "decayed": {
            "lr": 0.1,
            "wd": 0.1,
            "schedule": halves_per_second_step,
            "min_dim_size_to_factor": 3,
            "dtype_momentum": None,
        },
    },
}


def conventions() -> Named:
    pairs = [
        ("float32", "float32"),
        ("float64", "float64"),
        ("bfloat16", "bfloat16"),
        ("float32", "float16"),
    ]
    for convention, variants in ARGUMENTS.items():
        for name, (param, grad) in itertools.product(variants, pairs):
            problem = Problem(model(param=param, grad=grad), convention, variants[name])
            yield f"{convention} {name}, {param} {grad}", problem


def epsilons() -> Named:
    modes = ("seed", "grad_squared", "clamp", "root")
    clips = {"clipped": 0.01, "unclipped": None}
    pairs = [("float32", "float32"), ("float64", "float32"), ("bfloat16", "float16")]
    for mode, eps, clip in itertools.product(modes, (0.0, 1e-38, 1e-30, 1e-7, 1e-3), clips):
        for param, grad in pairs:
            arguments = {
                "eps_mode": mode,
                "eps": eps,
                "clip_threshold": clips[clip],
                "factored_axes": "last_two",
            }
            problem = Problem(model(param=param, grad=grad), "paper", arguments)
            yield f"{mode} {eps} {clip}, {param} {grad}", problem
    for convention in ("paper", "torch"):
        tensors = model(grad="bfloat16")
        yield f"always dead, {convention}", Problem(tensors, convention, grads="always dead")


def magnitudes() -> Named:
    """Squares beyond float32, in all elements or in some rows or columns."""
    pairs = [("float32", "float32"), ("float64", "float64"), ("bfloat16", "bfloat16")]
    for grads, eps in itertools.product(
        ("tiny", "huge", "rows apart", "columns apart"), (0.0, 1e-30)
    ):
        for param, grad in pairs:
            arguments = {"eps": eps, "factored_axes": "last_two", "weight_decay": 0.1}
            problem = Problem(model(param=param, grad=grad), "paper", arguments, grads)
            yield f"{grads} {eps}, {param} {grad}", problem
            for mode in ("seed", "root", "clamp"):
                other = replace(problem, arguments={**arguments, "eps_mode": mode, "lr": 1e-30})
                yield f"{grads} {eps}, {param} {grad}, {mode}", other
    sizes = [(2.0**scale, param) for scale in (-80, 80) for param in DTYPES if param != "float16"]
    subnormal = [(2.0**-18, "float16"), (2.0**-130, "bfloat16"), (2.0**-130, "float32")]
    for (scale, param), rounding in itertools.product(
        (*sizes, *subnormal), ("nearest", "stochastic")
    ):
        arguments = {"rounding": rounding, "factored_axes": "last_two"}
        problem = Problem(model(param=param), "seed", arguments, param_scale=scale)
        yield f"params of {scale:.0e}, {rounding} {param}", problem
    for param, rounding in itertools.product(HALVES, ("nearest", "stochastic")):
        arguments = {
            "nonfinite": "propagate",
            "lr": 1e5 if param == "float16" else 1e39,
            "rounding": rounding,
            "factored_axes": "last_two",
        }
        problem = Problem(model(param=param, grad=param), "seed", arguments, steps=2)
        yield f"params that overflow, {rounding} {param}", problem
    for grads, copy in itertools.product(("tiny", "rows apart"), HALVES):
        for more in ({"beta1": 0.9}, {"eps_mode": "seed", "weight_decay": 0.1}):
            tensors = model(grad="bfloat16", copy=copy)
            arguments = {"eps": 1e-25, "factored_axes": "last_two", **more}
            yield (
                f"{grads} copy {copy}, {' '.join(more)}",
                Problem(tensors, "paper", arguments, grads),
            )


def nonfinite() -> Named:
    """Elements that are no numbers, and steps that overflow though all are."""
    policies = ("propagate", "skip", "raise")
    for policy, grads, atomic in itertools.product(
        policies, ("infinite", "nan"), ("all", "tensor")
    ):
        for dtype in DTYPES:
            arguments = {"nonfinite": policy, "atomic": atomic, "factored_axes": "last_two"}
            problem = Problem(model(param=dtype, grad=dtype), "paper", arguments, grads)
            yield f"{grads} {policy} {atomic}, {dtype}", problem
    # With this decay rate V is what the first step left there.
    frozen = {"decay_rate": -1000.0, "eps_mode": "seed", "factored_axes": "last_two"}
    for policy, grads in itertools.product(policies, ("surge", "flood")):
        for param, grad in [
            ("float32", "float32"),
            ("bfloat16", "bfloat16"),
            ("float64", "float64"),
        ]:
            if grads == "flood" and grad != "float64":
                continue
            for eps in (1e-30, 1e-3):
                arguments = {**frozen, "nonfinite": policy, "eps": eps}
                problem = Problem(model(param=param, grad=grad), "paper", arguments, grads)
                yield f"{grads} {eps} {policy}, {param} {grad}", problem


def nans() -> Named:
    """What a step leaves that propagates what is not finite, and what the next steps make of it."""
    common = {"nonfinite": "propagate", "factored_axes": "last_two"}
    variants: dict[str, dict[str, Any]] = {
        "decayed": {"weight_decay": 0.1, "scale_parameter": False},
        "beta1": {"beta1": 0.9, "weight_decay": 0.1, "scale_parameter": False},
        "of u": {"beta1": 0.9, "momentum_of": "u"},
        "direct": {"eps": 1e-3, "clip_threshold": None},
        "float32 state": {"state_dtype": "float32", "scale_parameter": False},
        "matrix": {"rms_scope": "matrix", "max_grad_norm": 1.0},
    }
    for grads, dtype, name in itertools.product(("infinite", "nan"), DTYPES, variants):
        problem = Problem(
            model(param=dtype, grad=dtype), "seed", {**common, **variants[name]}, grads
        )
        yield f"{grads} {name}, {dtype}", problem
    for grads, rounding in itertools.product(("infinite", "nan"), ("nearest", "stochastic")):
        arguments = {**common, "rounding": rounding, "beta1": 0.9, "momentum_dtype": "bfloat16"}
        for copy in HALVES:
            problem = Problem(model(copy=copy, layout="both steps"), "paper", arguments, grads)
            yield f"{grads} copy {copy}, {rounding}", problem
        if rounding == "nearest":
            split = {**arguments, "masters": "split"}
            yield f"{grads} split", Problem(model(param="bfloat16"), "paper", split, grads)
        one = (Tensor((131, 77), "float16", "float16"),)
        yield (
            f"{grads} one array, {rounding}",
            Problem(one, None, {"nonfinite": "propagate", "rounding": rounding}, grads),
        )
    # Params overflow to infinity without a fault; decay makes nans of those.
    for dtype in HALVES:
        arguments = {
            **common,
            "lr": 1e5 if dtype == "float16" else 1e39,
            "scale_parameter": False,
            "weight_decay": 0.1,
            "weight_decay_mode": "alone",
        }
        problem = Problem(model(param=dtype, grad=dtype), "seed", arguments)
        yield f"params that overflow, {dtype}", problem
        yield (
            f"params that overflow, beta1, {dtype}",
            replace(problem, arguments={**arguments, "beta1": 0.5}),
        )


def layouts() -> Named:
    shapes = ((131, 77), (5, 5, 3, 3), (3, 20, 33), (33, 5, 7), (1500,))
    pairs = [
        ("float32", "float32"),
        ("float32", "float64"),
        ("float64", "float64"),
        ("float64", "float16"),
        ("bfloat16", "bfloat16"),
    ]
    axes = {"factored_axes": "last_two"}
    for layout in LAYOUTS:
        for param, grad in pairs:
            like = {"param": param, "grad": grad, "layout": layout}
            problem = Problem(model(*shapes, **like, grad_layout=layout), "paper", axes)
            yield f"both {layout}, {param} {grad}", problem
            arguments = {**axes, "beta1": 0.9, "weight_decay": 0.1, "eps": 1e-3}
            yield (
                f"param {layout}, {param} {grad}",
                Problem(model(*shapes, **like), "seed", arguments),
            )
        tensors = model(*shapes, layout="Fortran", grad_layout=layout)
        yield f"grad {layout}, param Fortran", Problem(tensors, "torch")
        tensors = model(*shapes, grad="bfloat16", copy="bfloat16", layout=layout)
        yield f"copy {layout}", Problem(tensors, "paper", {**axes, "rounding": "stochastic"})
        tensors = model(*shapes, param="bfloat16", grad="bfloat16", layout=layout)
        arguments = {**axes, "masters": "split"}
        yield f"split {layout}", Problem(tensors, "paper", arguments)


def batches() -> Named:
    """Small and large matrices along any two axes, alone and interleaved with others."""
    cases: dict[str, tuple[tuple[int, ...], tuple[int, int]]] = {
        "1x1": ((12, 11, 1, 1), (2, 3)),
        "1x1, two tasks": ((300, 256, 1, 1), (2, 3)),
        "3x3": ((20, 9, 3, 3), (2, 3)),
        "5x7": ((4, 3, 5, 7), (2, 3)),
        "16x16": ((3, 3, 16, 16), (2, 3)),
        "17x16": ((3, 3, 17, 16), (2, 3)),
        "7 of 3x3": ((7, 1, 3, 3), (2, 3)),
        "interleaved 3x3": ((3, 3, 20, 9), (0, 1)),
        "outermost and innermost": ((6, 20, 9, 5), (0, 3)),
        "transposed": ((20, 6, 5, 3), (2, 1)),
        "interleaved 40x50": ((40, 50, 3), (0, 1)),
        "interleaved in chunks": ((4, 40, 50, 3), (1, 2)),
        "rows inside": ((50, 3, 40), (2, 0)),
        "large": ((3, 300, 260), (1, 2)),
        "large, interleaved": ((300, 260, 2), (1, 0)),
        "wide": ((3, 5, 2100), (1, 2)),
    }
    pairs = [
        ("float32", "float32"),
        ("float32", "float64"),
        ("float64", "float64"),
        ("float64", "bfloat16"),
        ("bfloat16", "bfloat16"),
    ]
    for name, (shape, axes) in cases.items():
        for (param, grad), scope in itertools.product(pairs, ("tensor", "matrix")):
            tensors = model(shape, param=param, grad=grad)
            arguments: dict[str, Any] = {"factored_axes": axes, "rms_scope": scope}
            problem = Problem(tensors, "paper", arguments, steps=3)
            yield f"{name}, {scope}, {param} {grad}", problem
        like = {"layout": "Fortran", "grad_layout": "C"}
        arguments = {"factored_axes": axes, "beta1": 0.9, "eps": 1e-3, "clip_threshold": 0.1}
        yield f"{name}, Fortran", Problem(model(shape, **like), "seed", arguments, steps=3)
        split = {"factored_axes": axes, "masters": "split", "carry_param_rms": True}
        tensors = model(shape, param="bfloat16", grad="bfloat16", layout="Fortran reversed")
        yield f"{name}, split reversed", Problem(tensors, "paper", split, steps=3)


LARGE = ((700, 300), (130, 2500), (20, 17000), (3, 70000), (2100, 5), (150_000,))


def large() -> Named:
    """Several tiles, groups of blocks and parts of an axis."""
    for shape in LARGE:
        for param, grad in [
            ("float32", "float32"),
            ("float64", "float64"),
            ("bfloat16", "bfloat16"),
            ("float32", "float16"),
        ]:
            tensors = model(shape, param=param, grad=grad)
            arguments = {"carry_param_rms": True}
            yield f"{shape} {param} {grad}", Problem(tensors, "paper", arguments, steps=3)
        tensors = model(shape, grad_layout="Fortran", grad="bfloat16", copy="bfloat16")
        problem = Problem(tensors, "seed", {"eps": 1e-3, "beta1": 0.9}, steps=3)
        yield f"{shape} Fortran grad, copy", problem
        tensors = model(shape, layout="Fortran", grad_layout="Fortran")
        problem = Problem(tensors, "paper", {"eps": 0.0, "masters": "split"}, steps=3)
        yield f"{shape} Fortran, wide sums", problem


def carried() -> Named:
    variants: dict[str, tuple[str, dict[str, Any]]] = {
        "float32": ("float32", {}),
        "float64": ("float64", {"weight_decay": 0.1}),
        "bfloat16": ("bfloat16", {"rounding": "stochastic"}),
        "float16": ("float16", {"masters": "float32"}),
        "split": ("bfloat16", {"masters": "split"}),
        "direct": ("float32", {"eps": 1e-3, "beta1": 0.9}),
        "matrix": ("float32", {"rms_scope": "matrix"}),
    }
    shapes = (*SHAPES.values(), (64, 3000), (70_000,))
    for (name, (param, more)), written in itertools.product(
        variants.items(), (None, "told", "untold")
    ):
        arguments = {"carry_param_rms": True, "factored_axes": "last_two", **more}
        problem = Problem(
            model(*shapes, param=param, grad="bfloat16"),
            "seed",
            arguments,
            written=None if name in ("float16", "split") else written,
        )
        if written is None or problem.written:
            yield f"{name}, written {written}", problem
    for param, grad, layout, written in itertools.product(
        ("float32", "float64", "bfloat16"),
        ("float32", "float64"),
        ("C", "Fortran", "both steps"),
        (None, "untold"),
    ):
        tensors = model(*shapes, param=param, grad=grad, layout=layout)
        arguments = {"carry_param_rms": True, "factored_axes": "last_two"}
        problem = Problem(tensors, "paper", arguments, written=written)
        yield f"{param} {grad} {layout}, written {written}", problem


def options() -> Named:
    """What holds for all tensors of a model at once."""
    mixed = (
        Tensor((131, 77)),
        Tensor((9, 4, 3, 3), "bfloat16", "float32"),
        Tensor((6, 1100), "float64", "float64"),
        Tensor((1500,), "float16", "float16"),
        Tensor((0, 3)),
        Tensor((64, 70), "float32", "bfloat16", "bfloat16"),
        Tensor(()),
    )
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "clipped norm": {"max_grad_norm": 1e-5},
        "norm not clipped": {"max_grad_norm": 1e4},
        "clipped norm, direct": {"max_grad_norm": 1e-5, "eps_mode": "seed", "eps": 1e-3},
        "maximize": {"maximize": True},
        "matrix": {"rms_scope": "matrix"},
        "alone": {"weight_decay": 0.1, "weight_decay_mode": "alone"},
        "mask": {"weight_decay": halves_per_second_step, "weight_decay_mask": ("0", "3")},
        "after decay": {"weight_decay": 0.1, "scale_after_decay": True},
        "by t": {"lr": halves_per_second_step, "schedule": halves_per_second_step},
    }
    for name, atomic in itertools.product(variants, ("all", "tensor")):
        arguments = {"atomic": atomic, "factored_axes": "last_two", **variants[name]}
        problem = Problem(mixed, "paper", arguments)
        yield f"{name}, {atomic}", problem
        if atomic == "all":
            yield f"{name}, scaled", replace(problem, grad_scale=1000.0)
    for scope in ("tensor", "model"):
        for convention in ("paper", "torch"):
            problem = Problem(mixed, convention, {"t_scope": scope}, without=0)
            yield f"missing gradient, t of {scope}, {convention}", problem
    waves = model(*[(100, 600)] * 9, (150, 1000), *[(40, 50), (9, 4, 3, 3), (77,)] * 4)
    for name, more in {
        "tensor": {"atomic": "tensor"},
        "all": {},
        "clipped norm": {"max_grad_norm": 1e-5},
        "skip": {"atomic": "tensor", "nonfinite": "skip"},
    }.items():
        arguments = {"factored_axes": "last_two", **more}
        grads = "infinite" if name == "skip" else "dead lines"
        yield f"waves, {name}", Problem(waves, "paper", arguments, grads, steps=3)


def state_dtypes() -> Named:
    """exp_row, exp_col and v in float32, on every path that reads or writes them."""
    floats = {"state_dtype": "float32"}
    axes = {"factored_axes": "last_two"}
    for shape, param, grad in itertools.product(
        ((131, 77), (64, 3000), (2100, 5), (5000,)), ("float32", "float64"), ("float32", "float64")
    ):
        for eps in (1e-30, 1e-4):
            problem = Problem(model(shape, param=param, grad=grad), None, {"eps": eps, **floats})
            yield f"one array {shape} {param} {grad} {eps}", problem
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "direct": {"eps": 1e-3, "weight_decay": 0.1, "beta2": 0.9},
        "wide": {"eps": 0.0, "beta1": 0.9, "clip_threshold": 0.1},
        "matrix": {"rms_scope": "matrix", "carry_param_rms": True},
        "stochastic": {"rounding": "stochastic", "seed": 3},
    }
    for (param, grad), name in itertools.product(itertools.product(DTYPES, DTYPES), variants):
        problem = Problem(
            model(param=param, grad=grad), "seed", {**axes, **floats, **variants[name]}
        )
        yield f"{name}, {param} {grad}", problem
    for convention, arguments in ARGUMENTS.items():
        for name, switches in arguments.items():
            yield f"{convention} {name}", Problem(model(), convention, {**switches, **floats})
    for kind, param in (("float32", "float16"), ("split", "bfloat16")):
        arguments = {**axes, **floats, "masters": kind, "beta1": 0.9}
        yield f"masters {kind}", Problem(model(param=param, grad=param), "paper", arguments)
    for grads, policy, eps in itertools.product(
        ("tiny", "huge", "rows apart", "columns apart", "flood", "nan"),
        ("raise", "skip", "propagate"),
        (0.0, 1e-30),
    ):
        wide = {"param": "float64", "grad": "float64"} if grads == "flood" else {}
        arguments = {**axes, **floats, "eps": eps, "nonfinite": policy, "atomic": "tensor"}
        yield f"{grads} {policy} {eps}", Problem(model(**wide), "paper", arguments, grads)
    for layout in LAYOUTS:
        shapes = ((131, 77), (5, 5, 3, 3), (3, 20, 33), (33, 5, 7), (1500,))
        problem = Problem(model(*shapes, layout=layout), "torch", floats)
        yield f"param {layout}", problem
    batch = ((12, 11, 1, 1), (20, 9, 3, 3), (3, 3, 17, 16), (3, 300, 260))
    for scope in ("tensor", "matrix"):
        arguments = {**axes, **floats, "rms_scope": scope}
        yield f"batches, {scope}", Problem(model(*batch), "paper", arguments, steps=3)
    for shape in LARGE:
        problem = Problem(model(shape), "paper", {**floats, "max_grad_norm": 1e-5}, steps=3)
        yield f"large {shape}", problem


GROUPS = (
    one_array,
    dtypes,
    roundings,
    masters,
    momentum,
    conventions,
    epsilons,
    magnitudes,
    nonfinite,
    nans,
    layouts,
    batches,
    large,
    carried,
    options,
    state_dtypes,
)


def problems() -> dict[str, Problem]:
    """All problems by name."""
    found: dict[str, Problem] = {}
    for group in GROUPS:
        for name, problem in group():
            key = f"{group.__name__}: {name}"
            assert key not in found, key
            found[key] = problem
    return found
