"""Models in pieces step as those of one process: every layout, number of ranks, convention and dtype."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from adafactor_native import Optimizer
from adafactor_native.sharding import Shard
from sharded import cases
from sharded.cuts import LAYOUTS
from sharded.thread_engine import on_ranks

# Of the largest change of a tensor. One step rounds param by half an ulp of its own, which is larger
# than the change by 1e2 to 1e4 here.
TOLERANCE = {np.float64: 1e-10, np.float32: 2e-2}


def require_same(ranks, layout, convention, dtype, settings, tolerance):
    alone, reports = cases.one_process(convention, dtype, settings)
    begins = cases.arrays(np.float64, 0)

    def compare(engine):
        opt, own = cases.on_rank(engine, layout, convention, dtype, settings)
        found = cases.differences(engine, layout, opt, alone)
        assert max(found.values(), default=0) <= tolerance, found
        for report, expected in zip(own, reports):
            for key, numbers in cases.numbers_of(expected).items():
                np.testing.assert_allclose(
                    cases.numbers_of(report)[key],
                    numbers,
                    rtol=1e-9 if dtype == np.float64 else 1e-5,
                )
        return [cases.numbers_of(report) for report in own], opt.state_dict(True, gather=True)

    results = on_ranks(ranks, compare)

    expected_state = alone.state_dict(True)
    for numbers, state in results:
        for mine, first in zip(numbers, results[0][0]):
            for key in first:
                np.testing.assert_array_equal(mine[key], first[key])
        assert state.keys() == expected_state.keys()
        for key, array in expected_state.items():
            if key == "header":
                continue
            assert state[key].shape == array.shape
            kind, _, name = key.partition("/")
            scale = np.abs(array).max(initial=0)
            if kind == "param":
                scale = np.abs(array - begins[name]).max(initial=0)
            np.testing.assert_allclose(state[key], array, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_float64(layout, ranks):
    require_same(ranks, layout, "paper", np.float64, {}, TOLERANCE[np.float64])


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32(layout, ranks):
    require_same(ranks, layout, "paper", np.float32, {}, TOLERANCE[np.float32])


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("layout", ["rows_of_64", "owned", "replicas"])
@pytest.mark.parametrize(
    "dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda x: np.dtype(x).name
)
def test_same_bits_where_rows_are_cut_at_multiples_of_64(dtype, layout, ranks):
    """Panels of 64 rows are added up exactly, in any order: these lines do not span 2^29."""
    settings = {"beta1": 0.9, "weight_decay": 0.1}
    alone, reports = cases.one_process("paper", dtype, settings)
    expected = alone.state_dict(True)

    def step(engine):
        opt, own = cases.on_rank(engine, layout, "paper", dtype, settings)
        return opt.state_dict(True, gather=True), [cases.numbers_of(report) for report in own]

    for state, own in on_ranks(ranks, step):
        for key, array in expected.items():
            if key != "header":
                np.testing.assert_array_equal(state[key], array, err_msg=key)
        for report, numbers in zip(reports, own):
            for key, array in cases.numbers_of(report).items():
                if key == "rest" and layout == "owned":  # the norm, of tensors in another order
                    np.testing.assert_allclose(numbers[key], array, rtol=1e-15)
                else:
                    np.testing.assert_array_equal(numbers[key], array, err_msg=key)


def test_same_bits_where_vectors_are_cut_at_multiples_of_1024():
    rng = np.random.default_rng(0)
    param = rng.standard_normal(5000).astype(np.float32)
    grads = [rng.standard_normal(5000).astype(np.float32) for _ in range(cases.N_STEPS)]
    alone = Optimizer({"b": param.copy()})
    reports = [alone.step({"b": grad}) for grad in grads]

    def step(engine):
        here = slice((0, 1024, 3072)[engine.rank], (1024, 3072, 5000)[engine.rank])
        shards = {"b": Shard((5000,), (here.start,))}
        opt = Optimizer({"b": param[here].copy()}, comm=engine, shards=shards)
        own = [opt.step({"b": grad[here]}) for grad in grads]
        np.testing.assert_array_equal(opt.params["b"], alone.params["b"][here])
        np.testing.assert_array_equal(opt.state["b"]["v"], alone.state["b"]["v"][here])
        for mine, report in zip(own, reports):
            assert mine["b"] == report["b"]

    on_ranks(3, step)


TWO_LARGEST = ("optax", "big_vision")  # conventions that may factor other axes than the last two


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("convention", cases.CONVENTIONS)
def test_every_convention(convention, layout):
    if layout == "flat" and convention in TWO_LARGEST:
        with pytest.raises(ValueError, match=r"is a FlatShard and its axes .* are factored"):
            on_ranks(
                4, cases.on_rank, layout, convention, np.float64, cases.CONVENTIONS[convention]
            )
        return
    require_same(
        4, layout, convention, np.float64, cases.CONVENTIONS[convention], TOLERANCE[np.float64]
    )
