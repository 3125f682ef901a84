"""bench/ reckons what exchanges cost as it says."""

import math
import time

import numpy as np
import pytest

import sharded_overlap
from adafactor_native import Optimizer
from adafactor_native.sharding import FlatShard, Shard
from adafactor_native.sharding.channel import Channel
from exchange_costs import Network, Timing, fitted, halving_doubling, relative_errors, ring
from models import llama3_70b
from sharded.thread_engine import on_ranks
from sharding_model import cost, messages, shown_exchange
from simulated_network import Wire

NETWORK = Network("exact", 3e-6, 2e-9)


@pytest.mark.parametrize("all_reduce", [ring, halving_doubling])
def test_one_rank_exchanges_nothing(all_reduce):
    assert all_reduce(1e9, 1, NETWORK) == 0


def test_two_ranks_send_two_messages_of_half_the_bytes():
    assert ring(1000, 2, NETWORK) == pytest.approx(2 * (3e-6 + 500 * 2e-9))
    assert halving_doubling(1000, 2, NETWORK) == pytest.approx(2 * (3e-6 + 500 * 2e-9))


def test_long_messages_cost_the_same_and_short_ones_more_rounds_in_a_ring():
    assert ring(1e12, 64, NETWORK) == pytest.approx(halving_doubling(1e12, 64, NETWORK), rel=1e-3)
    assert ring(0, 64, NETWORK) == pytest.approx(2 * 63 * 3e-6)
    assert halving_doubling(0, 64, NETWORK) == pytest.approx(2 * 6 * 3e-6)


def test_the_fit_finds_the_parameters_of_exact_timings():
    timings = [
        Timing(n, n_bytes, ring(n_bytes, n, NETWORK))
        for n in (2, 3, 4)
        for n_bytes in (8, 4096, 10**7)
    ]
    found = fitted(timings, "found")
    assert found.is_measured
    assert found.latency_s == pytest.approx(NETWORK.latency_s)
    assert found.s_per_byte == pytest.approx(NETWORK.s_per_byte)
    assert max(map(abs, relative_errors(timings, found))) < 1e-9


def test_llama_has_the_matrices_that_its_paper_and_users_count():
    shapes = llama3_70b().values()
    assert len(shapes) == 562
    assert sum(map(math.prod, shapes)) == 70_552_387_584
    assert sum(rows for rows, _ in shapes) == 6_973_952
    assert sum(cols for _, cols in shapes) == 6_242_304


def test_rows_exchange_two_sums_a_column_and_a_grid_one_a_line_of_its_own():
    shapes = [(100, 30), (50, 20)]
    assert messages(shapes, "rows", 16) == [(30, 16), (24 + 2 * 50, 16)]
    few = [(20, 16), (18, 16), (16, 16), (6, 16)]
    assert messages(shapes, "grid", 16) == [*few, (150 / 2, 8), (50 / 8, 2)]
    # Of four ranges of 1000 elements three are of the first matrix, the last one has its end too.
    assert messages(shapes, "flat", 4)[4:] == [(30 + 2, 3)]


def shards_of(way, shape, rank, size):
    """Return the piece of a rank as the model has it."""
    rows, cols = shape
    if way == "rows":
        n = rows // size
        return Shard(shape, (rank * n, 0)), (n, cols)
    if way == "grid":
        down, across = size // 8, 8
        n, m = rows // down, cols // across
        return Shard(shape, (rank // across * n, rank % across * m)), (n, m)
    n = rows * cols // size
    return FlatShard(shape, rank * n), (n,)


@pytest.mark.parametrize(("way", "ranks"), [("rows", 4), ("grid", 16), ("flat", 4)])
def test_a_step_sends_what_the_model_reckons(way, ranks):
    def step(engine):
        shard, local = shards_of(way, shape, engine.rank, engine.size)
        opt = Optimizer({"w": np.ones(local)}, comm=engine, shards={"w": shard})
        before = engine.n_bytes
        opt.step({"w": np.ones(local)})
        return engine.n_bytes - before

    shape = (253, 516) if way == "flat" else (256, 512)  # ranges end within rows
    header = 5
    sent = on_ranks(ranks, step)
    assert max(sent) == 8 * (header + sum(n for n, _ in messages([shape], way, ranks)))


def test_a_step_costs_its_sweeps_and_its_rounds():
    one = cost([(1000, 500)], "rows", 4, NETWORK, ring)
    assert one.sweeps == pytest.approx(500_000 / 4 * 20 / 25e9)
    assert one.again == 0
    rounds = [ring(8 * n, size, NETWORK) for n, size in messages([(1000, 500)], "rows", 4)]
    assert one.exchange == pytest.approx(sum(rounds))
    assert one.step == pytest.approx(one.sweeps + sum(rounds))


def test_buckets_show_the_last_two_of_a_fast_network():
    """The sum before the last begins when the last was measured."""
    shapes = [(1 << 20, 512)] * 8
    fast = Network("fast", 0, 1e-12)
    n_buckets = 4
    length = 8 * 2 * 512 // n_buckets + 24  # and two matrices' scalars
    most, sums = messages(shapes, "rows", 4)
    shown = ring(8 * (most[0] + 2 * sums[0]) / n_buckets, 4, fast)
    assert shown_exchange(shapes, 4, fast, ring, length) == pytest.approx(shown, rel=1e-3)


def test_one_bucket_shows_the_whole_exchange():
    shapes = [(1000, 500)]
    whole = cost(shapes, "rows", 4, NETWORK, ring).exchange
    assert shown_exchange(shapes, 4, NETWORK, ring) == pytest.approx(whole)


def test_wire_carries_one_message_after_the_other():
    wire = Wire(Network("wire", 0.02, 1e-3))
    began = time.perf_counter()
    arrivals = [wire.begin(np.empty(n)) for n in (1, 2)]
    for arrival, least in zip(arrivals, (0.028, 0.044)):
        arrival.wait()
        assert time.perf_counter() - began >= least


def test_steps_on_a_simulated_network_wait_for_it(monkeypatch):
    monkeypatch.setattr(sharded_overlap, "NETWORKS", (Network("slow", 0.02, 0),))
    size = sharded_overlap.Size(matrices=2, rows=8, columns=1 << 16)  # in 2^16 a bucket each
    kept = Channel.bucket_length
    times = sharded_overlap.on_simulated(size, turns=1)
    assert Channel.bucket_length == kept
    assert set(times) == {sharded_overlap.NOTHING, "slow"}
    for name, own in times["slow"].items():
        assert own["step"][0] >= 2 * 20, name  # a maximum, then a sum
        assert 0 < own["waited"][0] <= own["step"][0], name
    assert "waited" in sharded_overlap.report(times)
