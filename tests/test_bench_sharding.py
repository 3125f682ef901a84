"""bench/ reckons what exchanges cost as it says."""

import math

import pytest

from exchange_costs import Network, Timing, fitted, halving_doubling, relative_errors, ring
from models import llama3_70b
from sharding_model import cost, words

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


def test_rows_exchange_two_sums_a_column_and_a_grid_one_a_line():
    shapes = [(100, 30), (50, 20)]
    few = 3 * 2
    assert words(shapes, "rows", 4) == [few, 2 * 50 + few]
    assert words(shapes, "grid", 4) == [few, 150 + 50 + few, few, few]
    assert words(shapes, "flat", 4) == [few, 50 + (3 + 2) + few, few, few]


def test_a_step_costs_its_sweeps_and_its_rounds():
    one = cost([(1000, 500)], "rows", 4, NETWORK, ring)
    assert one.sweeps == pytest.approx(500_000 / 4 * 20 / 25e9)
    assert one.again == 0
    rounds = [ring(8 * n, 4, NETWORK) for n in words([(1000, 500)], "rows", 4)]
    assert one.exchange == pytest.approx(sum(rounds))
    assert one.step == pytest.approx(one.sweeps + sum(rounds))
