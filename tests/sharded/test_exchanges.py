"""What a step exchanges: how often, whatever the number of tensors, and how many bytes."""

from __future__ import annotations

import numpy as np
import pytest

from adafactor_native import Optimizer
from sharded.cuts import LAYOUTS, local
from sharded.thread_engine import on_ranks

# Of a maximum and a sum each.
ROUNDS = {
    "rows": 1,
    "cols": 1,
    "batch": 1,
    "replicas": 1,
    "owned": 1,
    "grid": 2,
    "tiles": 2,
    "flat": 2,
}


def exchanged(engine, layout, shapes, **settings):
    """Return how many all-reduces one step makes, and of how many bytes."""
    cut = LAYOUTS[layout]
    pieces = {name: cut(shape, engine.size)[engine.rank] for name, shape in shapes.items()}
    pieces = {name: piece for name, piece in pieces.items() if piece is not None}
    ones = {name: local(np.ones(shapes[name], np.float32), piece) for name, piece in pieces.items()}
    shards = {name: shard for name, (shard, _) in pieces.items() if shard is not None}
    opt = Optimizer(
        {name: array.copy() for name, array in ones.items()}, comm=engine, shards=shards, **settings
    )
    calls, n_bytes = engine.n_calls, engine.n_bytes
    opt.step(ones)
    return engine.n_calls - calls, engine.n_bytes - n_bytes


@pytest.mark.parametrize("layout", ROUNDS)
def test_as_many_all_reduces_for_one_tensor_as_for_148(layout):
    shape = (8, 24, 16) if layout == "batch" else (130, 16)
    for n in (1, 148):
        shapes = {str(i): shape for i in range(n)}
        results = on_ranks(4, exchanged, layout, shapes)
        assert {calls for calls, _ in results} == {2 * ROUNDS[layout]}


@pytest.mark.parametrize("eps", [1e-30, 1e-3])
@pytest.mark.parametrize("layout", ["rows", "cols", "grid", "flat", "batch"])
def test_clipping_by_the_global_norm_takes_at_most_two_rounds(layout, eps):
    shapes = {"w": (130, 160), "b": (40,)}
    if layout == "batch":
        shapes = {"w": (8, 200, 100)}
    for max_grad_norm in (1e-3, 1.0, 1e9):
        settings = {"max_grad_norm": max_grad_norm, "eps_mode": "both", "eps": eps}
        (calls, _), *_ = on_ranks(4, exchanged, layout, shapes, **settings)
        assert calls <= 4


@pytest.mark.parametrize("layout", ROUNDS)
def test_exact_sums_take_at_most_four_rounds(layout):
    for n in (1, 148):
        shapes = {str(i): (130, 16) for i in range(n)}
        (calls, _), *_ = on_ranks(4, exchanged, layout, shapes, sums="exact")
        assert calls <= 8


def bytes_of(layout, rows, cols):
    (_, n_bytes), *_ = on_ranks(4, exchanged, layout, {"w": (rows, cols)})
    return n_bytes


def test_bytes_grow_with_the_lines_that_are_cut_only():
    """Two doubles for each column where rows are cut; one for each row and column of a grid."""
    per_col = (bytes_of("rows", 256, 1024) - bytes_of("rows", 256, 512)) / 512
    assert bytes_of("rows", 1024, 256) - bytes_of("rows", 512, 256) == 0
    assert bytes_of("cols", 256, 1024) - bytes_of("cols", 256, 512) == 0
    per_row = (bytes_of("cols", 1024, 256) - bytes_of("cols", 512, 256)) / 512
    of_grid = (bytes_of("grid", 256, 1024) - bytes_of("grid", 256, 512)) / 512
    of_flat = (bytes_of("flat", 256, 1024) - bytes_of("flat", 256, 512)) / 512
    assert (per_col, per_row, of_grid, of_flat) == (16, 16, 8, 8)
    assert bytes_of("batch", 256, 1024) == bytes_of("batch", 512, 512)
