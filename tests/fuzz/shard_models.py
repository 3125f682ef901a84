"""Draws models in pieces: how tensors are cut over ranks, and what is to come of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from adafactor_native import Optimizer
from adafactor_native.sharding.layouts import empty_piece, roles_of
from adafactor_native.sharding.pieces import Box, FlatRange, Piece, Shape
from corpus_problems import ARGUMENTS
from fuzz.models import DTYPES, FINITE, HALVES, any_shape, any_switches, numbers
from fuzz.places import Rng
from sharded_ranks import Cut

# Of gradients whose sums have the same bits in any order, and of those within a tolerance.
CALM = ("plain", "plain", "dead lines", "zeros", "rows apart")
PANEL, RUN = 64, 1024  # where cuts leave the bits of one process: rows, elements
SMALL = 256  # elements of matrices that are taken together


@dataclass
class Drawn:
    """A model, whose steps are taken in pieces.

    Attributes
    ----------
    sums : {"any", "aligned", "exact"}
        What ranks have to give: one process's step to rounding; its bits; or the same bits whatever
        the cut, with ``sums="exact"``.
    values : list of list of ndarray or None
        Of each step each tensor's gradient.
    withheld : dict of int to int
        By number of the step: the tensor whose gradient the first rank with elements does not give.
    grad_scale : float
    """

    sums: str
    convention: str
    settings: dict[str, Any]
    params: dict[str, np.ndarray]
    copies: dict[str, np.ndarray]
    values: list[list[np.ndarray | None]]
    withheld: dict[int, int]
    grad_scale: float
    n_ranks: int
    of_grads: str
    rng: Rng = field(repr=False)

    def optimizer(self) -> Optimizer:
        params = {name: param.copy() for name, param in self.params.items()}
        copies = {name: copy.copy() for name, copy in self.copies.items()} or None
        return Optimizer(params, self.convention, copies=copies, **self.settings)

    def keep(self, names: list[str] | None, steps: int | None) -> None:
        """Leave out tensors and the last steps: to find the smallest model that shows a fault."""
        if names:
            kept = [k for k, name in enumerate(self.params) if name in names]
            self.values = [[grads[k] for k in kept] for grads in self.values]
            self.withheld = {t: kept.index(k) for t, k in self.withheld.items() if k in kept}
            self.params = {name: p for name, p in self.params.items() if name in names}
            self.copies = {name: c for name, c in self.copies.items() if name in names}
        if steps is not None:
            self.values = self.values[:steps]


def draw(seed: int, number: int) -> Drawn:
    rng = np.random.default_rng([seed, number])
    sums = str(rng.choice(["any", "aligned", "exact"], p=[0.5, 0.3, 0.2]))
    convention, settings = _settings(rng)
    dtypes = [str(rng.choice(list(DTYPES)))] if rng.random() < 0.5 else list(DTYPES)
    if rng.random() < 0.12 and settings.get("rounding") != "stochastic":
        dtypes, settings["masters"] = ["bfloat16"], "split"
    elif rng.random() < 0.12:
        dtypes, settings["masters"] = ["bfloat16", "float16"], "float32"
    if "float64" in dtypes:
        settings.pop("momentum_dtype", None)
    copied = "masters" not in settings and rng.random() < 0.2
    of_grads = str(rng.choice(list(FINITE) if sums == "exact" and rng.random() < 0.4 else CALM))
    same_grads = rng.random() < 0.6
    params, copies, grads = {}, {}, []
    n_steps = int(rng.integers(1, 5))
    for k in range(int(rng.choice([1, 3, 8]))):
        mine = np.random.default_rng([seed, number, k])
        shape = _shape(mine)
        dtype = DTYPES[str(mine.choice(dtypes))]
        of_grad = dtype if same_grads else DTYPES[str(mine.choice(list(DTYPES)))]
        params[str(k)] = np.asarray(numbers(mine, "plain", shape, dtype))
        if copied and dtype == np.float32:
            copies[str(k)] = params[str(k)].astype(HALVES[int(mine.integers(2))])
        grads.append([_grad(mine, of_grads, shape, of_grad) for _ in range(n_steps)])
    values = [[grad[t] for grad in grads] for t in range(n_steps)]
    for t in range(n_steps):
        filled = [k for k, grad in enumerate(values[t]) if grad is not None and grad.size]
        if filled and rng.random() < 0.08:
            grad = values[t][int(rng.choice(filled))]
            assert grad is not None
            for _ in range(int(rng.integers(1, 4))):
                bad = rng.choice([np.nan, np.inf, -np.inf, -np.nan])
                grad[tuple(int(rng.integers(n)) for n in grad.shape)] = bad
    withheld = {}
    if rng.random() < 0.1:
        withheld[int(rng.integers(n_steps))] = int(rng.integers(len(params)))
    return Drawn(
        sums,
        convention,
        settings,
        params,
        copies,
        values,
        withheld,
        float(rng.choice([1.0, 1.0, 1024.0, 0.3])),
        int(rng.integers(1, 6)),
        of_grads,
        rng,
    )


def _settings(rng: Rng) -> tuple[str, dict[str, Any]]:
    convention, settings = "numpy", any_switches(rng)
    if rng.random() < 0.5:
        convention = str(rng.choice([name for name in ARGUMENTS if name != "seed"]))
        given = ARGUMENTS[convention]
        settings = dict(given[str(rng.choice(list(given)))])
        if rng.random() < 0.3:
            settings["state_dtype"] = "float32"
    settings["nonfinite"] = str(rng.choice(["raise", "skip", "propagate"], p=[0.7, 0.15, 0.15]))
    if rng.random() < 0.3:
        settings["max_grad_norm"] = float(rng.choice([1e-3, 1.0, 1e4]))
    if rng.random() < 0.1:
        settings["skip_above"] = 3.0
    settings["seed"] = int(rng.integers(2**20))
    settings["num_threads"] = int(rng.choice([1, 1, 2, 3]))
    return convention, settings


def _shape(rng: Rng) -> Shape:
    """As any model's; or large enough to be measured by rows, and to be cut between panels."""
    if rng.random() < 0.5:
        return any_shape(rng, large=rng.random() < 0.2)
    if rng.random() < 0.2:
        return (int(rng.integers(1, 8)) * RUN + int(rng.integers(RUN)),)
    rows, cols = int(rng.integers(65, 700)), int(rng.integers(33, 200))
    return (rows, cols) if rng.random() < 0.7 else (int(rng.integers(1, 5)), rows, cols)


def _grad(rng: Rng, of_grads: str, shape: Shape, dtype: np.dtype[Any]) -> np.ndarray | None:
    if rng.random() < 0.06:
        return None
    if of_grads != "rows apart" or not shape:
        return np.asarray(numbers(rng, "plain" if not shape else of_grads, shape, dtype))
    sizes = np.exp(rng.uniform(np.log(1e-2), 0, (*shape[:-1], 1)))
    return (rng.standard_normal(shape) * sizes).astype(np.float32).astype(dtype)


@dataclass(frozen=True)
class Way:
    """How one tensor is cut; `keeps_bits`: that one process's step has the same bits."""

    cut: Cut
    how: str
    keeps_bits: bool


def way_of(rng: Rng, tensor: Any, rule: Any, n_ranks: int, aligned: bool) -> Way:
    """Cut a native tensor in some way, or in one that leaves the bits as they are."""
    shape, axes = tensor.param.shape, tensor.axes
    options = ["whole", "replicas", "batch"] if axes is not None else ["whole", "replicas"]
    if not aligned:
        options += ["boxes", "boxes", "row", "col", "flat", "hybrid"]
    elif _keeps_bits_in_panels(tensor, rule):
        options += ["panels"] * 6
    how = str(rng.choice(options))
    last_two = axes is None or tuple(axes) == (len(shape) - 2, len(shape) - 1)
    flat = how == "flat" and last_two and prod(shape) > 0
    if how == "flat" and not flat:
        how = "boxes"
    pieces = _pieces(rng, shape, axes, n_ranks, how)
    empty = empty_piece(shape, "flat" if flat else "boxes", axes)
    roles = roles_of(tensor.name, shape, [piece or empty for piece in pieces], axes)
    layout = roles[0].layout
    nothing = empty_piece(shape, "flat" if flat else layout, axes)
    every = [piece or nothing for piece in pieces]
    if axes is not None and axes[0] > axes[1]:  # as Cut has it: by the order of axes
        layout = {"rows": "cols", "cols": "rows"}.get(layout, layout)
    if layout == "elements" and (flat or not shape):
        layout = "flat elements"
    cut = Cut(layout, [_ranges(piece, shape) for piece in every], [role.speaks for role in roles])
    is_small = axes is not None and shape[axes[0]] * shape[axes[1]] <= SMALL  # summed together
    keeps_bits = how in ("whole", "replicas", "panels") or (how == "batch" and not is_small)
    return Way(cut, how, keeps_bits)


def _ranges(piece: Piece, shape: Shape) -> list[tuple[int, int]]:
    if isinstance(piece, FlatRange):
        return [(piece.start, piece.stop)]
    if not shape:
        return [(0, 1)]
    return [(i, i + n) for i, n in zip(piece.start, piece.shape)]


def _keeps_bits_in_panels(tensor: Any, rule: Any) -> bool:
    """Whether a narrow tensor keeps its bits if it is cut between panels of rows, or runs.

    Where next to nothing is added to V, squares are summed in float64 from the first.
    """
    shape, axes = tensor.param.shape, tensor.axes
    if tensor.param.dtype == np.float64:
        return False
    if rule.eps_squares + rule.eps_means + rule.root_floor**2 < 1e-36:
        return False
    if axes is None:
        return len(shape) == 1
    rows, cols = shape[-2:]
    last_two = set(axes) == {len(shape) - 2, len(shape) - 1}
    return (
        last_two and cols > 1 and (rows > 2048 or (cols <= 16384 and (rows >= 128 or cols <= 1024)))
    )


def _pieces(rng: Rng, shape: Shape, axes: Any, n: int, how: str) -> list[Piece | None]:
    """Of each rank; None where it has nothing."""
    whole = Box((0,) * len(shape), tuple(shape))
    if how == "whole":
        owner = int(rng.integers(n))
        return [whole if rank == owner else None for rank in range(n)]
    if how == "replicas" or not shape:
        return [whole] * n
    if how == "flat":
        ends = [0, *sorted(int(rng.integers(prod(shape) + 1)) for _ in range(n - 1)), prod(shape)]
        return [FlatRange(a, b - a) if b > a else None for a, b in zip(ends, ends[1:])]
    if how == "hybrid":  # sets of equal pieces
        distinct = _pieces(rng, shape, axes, int(rng.integers(1, n + 1)), "boxes")
        extra = [distinct[int(rng.integers(len(distinct)))] for _ in range(n - len(distinct))]
        every = [*distinct, *extra]
        return [every[k] for k in rng.permutation(n)]
    every_axis = list(range(len(shape)))
    cuttable, multiple = every_axis, 1
    if how == "batch":
        cuttable = [axis for axis in every_axis if axis not in axes]
    elif how in ("row", "col") and axes is not None:
        cuttable = [axes[how == "col"]]
    elif how == "panels":
        cuttable = [max(len(shape) - 2, 0)]
        multiple = RUN if len(shape) == 1 else PANEL
    boxes: list[Box | None] = [whole]
    while len(boxes) < n:
        k = int(rng.integers(len(boxes)))
        box = boxes[k]
        if box is None or not cuttable or rng.random() < 0.1:
            boxes.append(None)
            continue
        axis = int(rng.choice(cuttable))
        places = range(0, box.shape[axis] + 1, multiple)
        at = int(places[int(rng.integers(len(places)))])
        boxes[k : k + 1] = list(_halves(box, axis, at))
    return [boxes[k] for k in rng.permutation(n)]


def _halves(box: Box, axis: int, at: int) -> tuple[Box | None, Box | None]:
    def part(begin: int, length: int) -> Box | None:
        start = tuple(i + begin * (d == axis) for d, i in enumerate(box.start))
        shape = tuple(length if d == axis else n for d, n in enumerate(box.shape))
        return Box(start, shape) if prod(shape) else None

    return part(0, at), part(at, box.shape[axis] - at)
