"""Draws models, how they are stepped, and every number in them, from a seed and a number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from corpus_problems import ARGUMENTS
from fuzz.places import Arena, Place, Rng

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "bfloat16": BFLOAT16,
    "float16": np.dtype(np.float16),
}
HALVES = (BFLOAT16, np.dtype(np.float16))
STEPS = 6


def tenth_of_t(t: int) -> float:
    return 0.1 / t


def half(t: int) -> float:
    return 0.5


# What a switch may be beside its default; each is drawn with even odds of it.
SWITCHES: dict[str, list[dict[str, Any]]] = {
    "lr": [{"lr": 0.3}, {"lr": 0.0}, {"lr": tenth_of_t}, {"lr": 30.0}],
    "beta2": [{"beta2": 0.0}, {"beta2": 0.5}, {"beta2": 1e-200}],
    "decay_rate": [
        {"decay_rate": -0.8},
        {"decay_rate": -0.8, "beta2": 1.0, "decay_offset": 2},
        {"decay_rate": 0.0},
    ],
    "bias_correction": [{"bias_correction": True}, {"bias_correction": "beta2"}],
    "eps": [{"eps": eps} for eps in (0.0, 1e-38, 1e-16, 1e-8, 1e-3, 0.5, None)],
    "eps_mode": [{"eps_mode": mode} for mode in ("grad_squared", "clamp", "root")],
    "factored_axes": [
        {"factored_axes": axes} for axes in ("last_two", "last_two", "two_largest", "none")
    ],
    "min_dim_size_to_factor": [{"min_dim_size_to_factor": 4}],
    "clip_threshold": [{"clip_threshold": clip} for clip in (None, 0.1, 9.0)],
    "rms_scope": [{"rms_scope": "matrix"}],
    "scale_parameter": [{"scale_parameter": False}],
    "eps_scale": [{"eps_scale": 1e-3}],
    "relative_step": [{"relative_step": True}, {"relative_step": True, "warmup_init": True}],
    "beta1": [{"beta1": 0.9}, {"beta1": 0.5, "momentum_of": "u"}, {"beta1": 0.0}],
    "momentum_dtype": [{"momentum_dtype": "bfloat16"}, {"momentum_dtype": "float32"}],
    "weight_decay": [
        {"weight_decay": 0.1, "weight_decay_mode": mode, "schedule": half}
        for mode in ("lr", "step", "alone", "schedule")
    ]
    + [{"weight_decay": tenth_of_t, "weight_decay_mode": "alone"}],
    "maximize": [{"maximize": True}],
    "t_scope": [{"t_scope": "model"}],
    "state_dtype": [{"state_dtype": "float32"}],
    "rounding": [{"rounding": "stochastic"}],
}
OF_ONE_ARRAY = (
    "lr",
    "beta2",
    "eps",
    "clip_threshold",
    "scale_parameter",
    "state_dtype",
    "rounding",
)


def any_switches(rng: Rng) -> dict[str, Any]:
    """Switches that an Optimizer takes together."""
    switches: dict[str, Any] = {}
    for options in SWITCHES.values():
        if rng.random() < 0.3:
            switches.update(options[rng.integers(len(options))])
    if switches.get("bias_correction"):
        for name in ("decay_rate", "decay_offset"):
            switches.pop(name, None)
        if switches.get("beta2") == 1.0:
            switches["beta2"] = 0.9
    if "beta1" not in switches:
        switches.pop("momentum_dtype", None)
    return switches


# Values of gradients and params: standard normal numbers in, numbers out.
def _plain(x: np.ndarray, rng: Rng) -> np.ndarray:
    return x * 10.0 ** rng.integers(-3, 3)


def _dead_lines(x: np.ndarray, rng: Rng) -> np.ndarray:
    x = x.copy()
    for axis in range(x.ndim):
        np.moveaxis(x, axis, 0)[rng.random(x.shape[axis]) < 0.3] = 0
    return x


def _apart(x: np.ndarray, rng: Rng) -> np.ndarray:
    """The sizes of an axis's lines run over the range of float32."""
    if x.ndim == 0:
        return x
    axis = int(rng.integers(x.ndim))
    along = [-1 if d == axis else 1 for d in range(x.ndim)]
    return x * 10.0 ** rng.integers(-36, 36, x.shape[axis]).reshape(along)


def _extreme(x: np.ndarray, rng: Rng) -> np.ndarray:
    return x * 10.0 ** int(rng.choice([-320, -160, -44, -38, -30, -19, 15, 19, 30, 37, 150]))


def _zeros(x: np.ndarray, rng: Rng) -> np.ndarray:
    return x * 0.0


def _sprinkled(values: tuple[float, ...]) -> Callable[[np.ndarray, Rng], np.ndarray]:
    def values_of(x: np.ndarray, rng: Rng) -> np.ndarray:
        return np.where(rng.random(x.shape) < 0.1, rng.choice(values, x.shape), x)

    return values_of


_NUMBERS = (0.0, -0.0, 5e-324, 1e-45, 6e-8, 6.1e-5, 1.2e-38, 65504.0, 3.38e38, -1e300, 1.0, -1e-7)
FINITE = {
    "plain": _plain,
    "dead lines": _dead_lines,
    "apart": _apart,
    "extreme": _extreme,
    "zeros": _zeros,
    "special": _sprinkled(_NUMBERS),
}
MODERATE = ("plain", "dead lines")
_NOT_FINITE = _sprinkled((np.inf, -np.inf, np.nan, -np.nan))


def numbers(rng: Rng, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    with np.errstate(all="ignore"):
        x = np.asarray(rng.standard_normal(shape))
        x = _NOT_FINITE(x, rng) if name == "not finite" else FINITE[name](x, rng)
        return (
            np.asarray(x).astype(np.float32).astype(dtype) if dtype in HALVES else x.astype(dtype)
        )


@dataclass
class Tensor:
    """One tensor: where param, copy and the gradient of each step lie, and their numbers."""

    name: str
    param: Place
    copy: Place | None
    grads: list[Place | None]
    values: list[np.ndarray | None] = field(default_factory=list)  # param's, then gradients'


@dataclass
class Model:
    """What is stepped, and how.

    Attributes
    ----------
    kind : {"Optimizer", "AdaFactor"}
        An AdaFactor for each tensor, or an Optimizer of all.
    of_params, of_grads : str
        What their numbers look like: a key of FINITE, or "not finite".
    ways : list of str
        How each step's gradients are handed over: "step", "measure", "step_tensor" or "accumulate".
    spoilt : dict of int to str
        What is wrong with a step's arguments, by number of the step.
    """

    kind: str
    convention: str
    arguments: dict[str, Any]
    options: dict[str, Any]
    of_params: str
    of_grads: str
    grad_scale: float
    tensors: list[Tensor]
    ways: list[str]
    spoilt: dict[int, str]
    arena: np.ndarray

    def keep(self, names: list[str] | None, steps: int | None) -> None:
        """Leave out tensors and the last steps: to find the smallest model that shows a fault."""
        if names:
            self.tensors = [t for t in self.tensors if t.name in names]
        if steps is not None:
            self.ways = self.ways[:steps]


def any_shape(rng: Rng, large: bool) -> tuple[int, ...]:
    ndim = int(rng.choice(5, p=[0.05, 0.2, 0.4, 0.2, 0.15]))
    if ndim == 0:
        return ()
    if rng.random() < 0.02:
        return tuple(int(n) for n in rng.integers(0, 3, ndim))
    most = int(rng.choice([40_000, 150_000])) if large else int(rng.choice([64, 300, 2000]))
    if ndim == 1:
        return (int(rng.integers(1, most)),)
    if ndim == 4 and rng.random() < 0.5:  # kernels, as of convolutions
        k = int(rng.integers(1, 5))
        outer = max(1, int((most / k / k) ** 0.5))
        return (int(rng.integers(1, outer + 1)), int(rng.integers(1, outer + 1)), k, k)
    shape, rest = [], float(most)
    for axes_left in range(ndim, 0, -1):
        limit = rest ** (1 / axes_left) if rng.random() < 0.7 else rest / 2
        shape.append(int(rng.integers(1, max(2, int(limit) + 1))))
        rest /= shape[-1]
    return tuple(int(n) for n in rng.permutation(shape))


def draw(seed: int, number: int) -> Model:
    rng = np.random.default_rng([seed, number])
    kind = "AdaFactor" if rng.random() < 0.15 else "Optimizer"
    options: dict[str, Any] = {}
    of_params = str(rng.choice([*FINITE, *["plain"] * 7, "not finite"]))
    of_grads = str(rng.choice([*FINITE, *["plain"] * 7, "not finite"]))
    policies = ["raise", "skip", "propagate"]
    options["nonfinite"] = str(rng.choice(policies, p=[0.6, 0.2, 0.2]))
    if rng.random() < 0.2:
        options["carry_param_rms"] = True
    convention, arguments = "numpy", any_switches(rng)
    if kind == "AdaFactor":
        mine = {k: v for k, v in arguments.items() if k in OF_ONE_ARRAY and not callable(v)}
        arguments = {k: v for k, v in mine.items() if k != "eps" or v is not None}
    else:
        options["atomic"] = str(rng.choice(["all", "tensor"]))
        if rng.random() < 0.25:
            options["max_grad_norm"] = float(rng.choice([1e-3, 1.0, 1e4]))
        if rng.random() < 0.1:
            options["skip_above"] = 3.0
        if rng.random() < 0.3:
            convention = str(rng.choice(list(ARGUMENTS)))
            given = ARGUMENTS[convention]
            arguments = dict(given[str(rng.choice(list(given)))])
            if rng.random() < 0.3:
                arguments["state_dtype"] = "float32"
            convention = "numpy" if convention == "seed" else convention
    params = [str(rng.choice(list(DTYPES)))] if rng.random() < 0.5 else list(DTYPES)
    if kind == "Optimizer" and rng.random() < 0.15 and arguments.get("rounding") != "stochastic":
        params, arguments["masters"] = ["bfloat16"], "split"
    elif kind == "Optimizer" and rng.random() < 0.12:
        params, arguments["masters"] = ["bfloat16", "float16"], "float32"
    if "float64" in params and arguments.get("momentum_dtype"):
        del arguments["momentum_dtype"]
    options["seed"] = int(rng.integers(2**20))

    arena, tensors = Arena(), []
    large = rng.random() < 0.04
    n_tensors = int(rng.integers(1, 12)) if large else int(rng.choice([3, 12, 60, 120]))
    same_grads = rng.random() < 0.5
    one = bool(rng.random() < 0.3)
    copies = kind == "Optimizer" and "masters" not in arguments and rng.random() < 0.25
    for k in range(n_tensors):
        mine = np.random.default_rng([seed, number, k])
        shape = any_shape(mine, large)
        dtype = DTYPES[str(mine.choice(params))]
        grad_dtype = dtype if same_grads else DTYPES[str(mine.choice(list(DTYPES)))]
        values: list[np.ndarray | None] = [numbers(mine, of_params, shape, dtype)]
        param = arena.place(mine, shape, dtype, False)
        copy = None
        if copies and dtype == np.float32:
            copy = arena.place(mine, shape, HALVES[int(mine.integers(2))], False)
        grads: list[Place | None] = []
        for _ in range(STEPS):
            if mine.random() < 0.05 and kind == "Optimizer":
                grads.append(None)
                values.append(None)
            else:
                grads.append(arena.place(mine, shape, grad_dtype, True))
                # One tensor in ten is as drawn, all others are plain: what is rare is alone.
                rare = not one or mine.random() < 0.1
                values.append(numbers(mine, of_grads if rare else "plain", shape, grad_dtype))
        tensors.append(Tensor(str(k), param, copy, grads, values))

    handed = ["step", "step", "step", "measure", "step_tensor", "accumulate"]
    ways = [
        str(rng.choice(handed if kind == "Optimizer" else ["step"]))
        for _ in range(int(rng.integers(1, STEPS + 1)))
    ]
    if "max_grad_norm" in options or "skip_above" in options:
        ways = ["measure" if way == "step_tensor" else way for way in ways]
    spoilt = {}
    if rng.random() < 0.3:
        wrong = ["shape", "dtype", "overlap", "read-only", "missing"]
        spoilt[int(rng.integers(len(ways)))] = str(rng.choice(wrong))
    grad_scale = float(rng.choice([1.0, 1.0, 1024.0, 0.3])) if kind == "Optimizer" else 1.0
    return Model(
        kind,
        convention,
        arguments,
        options,
        of_params,
        of_grads,
        grad_scale,
        tensors,
        ways,
        spoilt,
        arena.filled(rng),
    )
