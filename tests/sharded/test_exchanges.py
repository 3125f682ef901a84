"""What a step exchanges: how often, whatever the number of tensors, and how many bytes."""

from __future__ import annotations

import numpy as np
import pytest

from adafactor_native import Optimizer
from adafactor_native.sharding import FlatShard
from sharded.cuts import LAYOUTS, edges, local
from sharded.thread_engine import ThreadEngine, on_ranks

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
        results = on_ranks(4, exchanged, layout, shapes, kind=ThreadEngine)
        assert {calls for calls, _ in results} == {2 * ROUNDS[layout]}


@pytest.mark.parametrize("eps", [1e-30, 1e-3])
@pytest.mark.parametrize("layout", ["rows", "cols", "grid", "flat", "batch"])
def test_clipping_by_the_global_norm_takes_at_most_two_rounds(layout, eps):
    shapes = {"w": (130, 160), "b": (40,)}
    if layout == "batch":
        shapes = {"w": (8, 200, 100)}
    for max_grad_norm in (1e-3, 1.0, 1e9):
        settings = {"max_grad_norm": max_grad_norm, "eps_mode": "both", "eps": eps}
        (calls, _), *_ = on_ranks(4, exchanged, layout, shapes, kind=ThreadEngine, **settings)
        assert calls <= 4


@pytest.mark.parametrize("layout", ROUNDS)
def test_exact_sums_take_at_most_four_rounds(layout):
    for n in (1, 148):
        shapes = {str(i): (130, 16) for i in range(n)}
        (calls, _), *_ = on_ranks(4, exchanged, layout, shapes, kind=ThreadEngine, sums="exact")
        assert calls <= 8


def bytes_of(layout, rows, cols):
    (_, n_bytes), *_ = on_ranks(4, exchanged, layout, {"w": (rows, cols)}, kind=ThreadEngine)
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


def lines_of(layout, rows, cols):
    """Return by how many bytes a step costs each rank more than that of a matrix of 256 x 512."""

    def bytes_on_ranks(shape):
        results = on_ranks(4, exchanged, layout, {"w": shape})
        return np.array([n_bytes for _, n_bytes in results])

    few = bytes_on_ranks((256, 512))
    return bytes_on_ranks((rows, cols)) - few


def test_ranks_of_a_grid_exchange_their_own_lines_only():
    """8 (rows / P + cols / Q) bytes, of a grid of P x Q: here halves, which `cuts` makes uneven."""
    at_rows, at_cols = edges(1024, 2), edges(512, 2)
    few_rows = edges(256, 2)
    for rank, more in enumerate(lines_of("grid", 1024, 512)):
        half = rank // 2
        assert more == 8 * (
            (at_rows[half + 1] - at_rows[half]) - (few_rows[half + 1] - few_rows[half])
        )
    more_cols = edges(2048, 2)
    for rank, more in enumerate(lines_of("grid", 256, 2048)):
        half = rank % 2
        assert more == 8 * (
            (more_cols[half + 1] - more_cols[half]) - (at_cols[half + 1] - at_cols[half])
        )


def test_flat_ranges_exchange_the_rows_that_are_cut_and_all_columns():
    assert set(lines_of("flat", 1024, 512)) == {0}
    assert set(lines_of("flat", 256, 2048)) == {8 * (2048 - 512)}


def test_tensors_of_few_ranks_cost_the_others_their_scalars_only():
    """Here a flat one that ranks 1 and 2 have, cut between rows."""

    def step(engine, n):
        shape = (n, n)
        cuts = [0, 0, n * n // 3, n * n, n * n]
        start, stop = cuts[engine.rank], cuts[engine.rank + 1]
        grad = np.ones(stop - start)
        shards = {"w": FlatShard(shape, start)}
        opt = Optimizer({"w": grad.copy()}, comm=engine, shards=shards)
        before = engine.n_bytes
        opt.step({"w": grad})
        return engine.n_bytes - before

    few, more = on_ranks(4, step, 150), on_ranks(4, step, 300)
    assert [b - a for a, b in zip(few, more)] == [0, 8 * 150, 8 * 150, 0]


@pytest.mark.parametrize("layout", ROUNDS)
def test_groups_add_their_sums_to_the_first_round_only(layout):
    for n in (1, 148):
        shape = (8, 24, 16) if layout == "batch" else (130, 16)
        results = on_ranks(4, exchanged, layout, {str(i): shape for i in range(n)})
        most = {"grid": 2, "flat": 2}.get(layout, 0)
        assert all(2 * ROUNDS[layout] <= calls <= 2 * ROUNDS[layout] + most for calls, _ in results)
