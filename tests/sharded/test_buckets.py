"""Steps in many buckets, several all-reduces under way at a time: the bits and errors of one bucket."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from adafactor_native.sharding import CommunicationError
from adafactor_native.sharding.channel import Channel
from sharded import cases
from sharded.cuts import LAYOUTS
from sharded.test_faults import bytes_of, grads_here, one_more_step
from sharded.test_layouts import TWO_LARGEST
from sharded.thread_engine import Killed, Shared, ThreadEngine, on_ranks

RANKS = 3


class StartingEngine(ThreadEngine):
    """A thread's rank whose all-reduces are begun, and take place when they are waited for.

    Attributes
    ----------
    most_under_way : int
        All-reduces that were under way at a time.
    n_tests : int
        How often one was let move on.
    """

    def __init__(self, rank, shared):
        super().__init__(rank, shared)
        self.under_way = deque()
        self.most_under_way = self.n_tests = 0

    def start_all_reduce(self, array, op):
        self.under_way.append(array)
        self.most_under_way = max(self.most_under_way, len(self.under_way))
        return Started(self, array, op)

    def all_reduce(self, array, op):
        assert not self.under_way, "the oldest must be over before anything else is exchanged"
        super().all_reduce(array, op)


class Started:
    def __init__(self, engine, array, op):
        self.engine, self.array, self.op = engine, array, op

    def test(self):
        assert any(array is self.array for array in self.engine.under_way)
        self.engine.n_tests += 1

    def wait(self):
        assert self.engine.under_way[0] is self.array, "the oldest is waited for first"
        ThreadEngine.all_reduce(self.engine, self.array, self.op)
        self.engine.under_way.popleft()


@pytest.fixture
def small_buckets(monkeypatch):
    """Every tensor is in a bucket of its own."""
    monkeypatch.setattr(Channel, "bucket_length", 1)


def starting_engines(size=RANKS):
    shared = Shared(size)
    return [StartingEngine(rank, shared) for rank in range(size)]


def digest(engine, layout, convention, dtype, settings):
    opt, reports = cases.on_rank(engine, layout, convention, dtype, settings)
    norms = [report.grad_norm for report in reports]
    return cases.digest(opt.state_dict(True, gather=True), reports), norms


def require_same_bits(monkeypatch, layout, convention, dtype=np.float32, **settings):
    given = (layout, convention, dtype, settings)
    expected = on_ranks(RANKS, digest, *given)
    for length in (1, 150, 600):
        monkeypatch.setattr(Channel, "bucket_length", length)
        engines = starting_engines()
        assert on_ranks(RANKS, digest, *given, engines=engines) == expected
        assert {engine.most_under_way for engine in engines} == {engines[0].most_under_way}
    monkeypatch.undo()


@pytest.mark.parametrize("convention", cases.CONVENTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_buckets_change_no_bit(monkeypatch, layout, convention):
    settings = dict(cases.CONVENTIONS[convention])
    if layout == "flat" and convention in TWO_LARGEST:
        settings["factored_axes"] = "last_two"
    require_same_bits(monkeypatch, layout, convention, **settings)


SETTINGS = {
    "float64": {"dtype": np.float64},
    "exact": {"sums": "exact"},
    "norm": {"max_grad_norm": 1e-3},
    "norm, direct form": {"max_grad_norm": 1e-3, "eps_mode": "both", "eps": 1e-3},
    "norm, direct form, exact": {
        "max_grad_norm": 1e-3,
        "eps_mode": "both",
        "eps": 1e-3,
        "sums": "exact",
    },
    "direct form": {"eps_mode": "both", "eps": 1e-3},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_buckets_change_no_bit_of_more_rounds(monkeypatch, layout, settings):
    require_same_bits(monkeypatch, layout, "paper", **SETTINGS[settings])


def test_one_bucket_is_under_way_while_the_next_is_measured(small_buckets):
    engines = starting_engines()
    on_ranks(RANKS, digest, "rows", "paper", np.float32, {}, engines=engines)
    n_buckets, n_others = len(cases.SHAPES), engines[0].n_calls
    assert [engine.most_under_way for engine in engines] == [3, 3, 3]
    assert all(engine.n_tests > 0 for engine in engines)
    plain = on_ranks(RANKS, calls_of_a_step)
    assert plain == [2 * n_buckets] * RANKS
    assert n_others > cases.N_STEPS * 2 * n_buckets


def calls_of_a_step(engine):
    opt, _ = cases.on_rank(engine, "rows", "paper", np.float32, {})
    before = engine.n_calls
    opt.step(grads_here(engine, "rows", dtype=np.float32))
    return engine.n_calls - before


def nan_late(rank, grads, opt):
    if rank == 1:
        grads["b"][0] = np.nan


def missing_early(rank, grads, opt):
    if rank == 1:
        grads["w"] = None


def missing_late(rank, grads, opt):
    if rank == 2:
        grads["b"] = None


def other_dtype(rank, grads, opt):
    if rank == 1:
        grads["wide"] = grads["wide"].astype(np.float32)


def wrong_shape(rank, grads, opt):
    if rank == 2:
        grads["w"] = grads["w"][None]


def other_lr(rank, grads, opt):
    opt.param_groups[0]["lr"] = 0.1 if rank == 2 else 0.2


def other_t(rank, grads, opt):
    if rank == 1:
        opt._tensors.set_counts(7, 0, [7] * len(opt.names))


FAULTS = {
    fault.__name__: (fault, error)
    for fault, error in (
        *((nan_late, FloatingPointError), (missing_early, ValueError), (missing_late, ValueError)),
        *((other_dtype, TypeError), (wrong_shape, ValueError)),
        *((other_lr, ValueError), (other_t, ValueError)),
    )
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("layout", ["rows", "cols", "grid", "flat"])
def test_faults_are_those_of_one_bucket(monkeypatch, layout, fault):
    """Whatever was begun is over on all ranks, which raise the same, and go on."""
    spoil, error = FAULTS[fault]

    def refused(engine):
        opt, _ = cases.on_rank(engine, layout, "paper", np.float64, {})
        before = bytes_of(opt)
        grads = grads_here(engine, layout)
        spoil(engine.rank, grads, opt)
        before = before if fault != "other_t" else bytes_of(opt)
        with pytest.raises(error) as raised:
            opt.step(grads)
        assert bytes_of(opt) == before
        if isinstance(engine, StartingEngine):
            assert not engine.under_way
        if fault not in ("other_lr", "other_t"):
            one_more_step(engine, opt, layout)
        return str(raised.value)

    expected = set(on_ranks(RANKS, refused))
    assert len(expected) == 1
    monkeypatch.setattr(Channel, "bucket_length", 1)
    assert set(on_ranks(RANKS, refused, engines=starting_engines())) == expected


@pytest.mark.parametrize("layout", ["rows", "grid"])
def test_a_rank_that_dies_among_buckets_leaves_the_others_as_they_were(small_buckets, layout):
    def count(engine):
        opt, _ = cases.on_rank(engine, layout, "paper", np.float64, {})
        before = engine.n_calls
        opt.step(grads_here(engine, layout))
        return engine.n_calls - before

    n_calls = on_ranks(RANKS, count, engines=starting_engines())[0]
    for call in range(n_calls):
        engines = starting_engines()

        def survive(engine, call=call):
            opt, _ = cases.on_rank(engine, layout, "paper", np.float64, {})
            saved = opt.state_dict(True, gather=True)
            before = bytes_of(opt)
            dies = engine.rank == 1
            if dies:
                engine.dies_at = engine.n_calls + call
            with pytest.raises(Killed if dies else CommunicationError):
                opt.step(grads_here(engine, layout))
            assert bytes_of(opt) == before
            with pytest.raises(CommunicationError, match="load a state on all ranks"):
                opt.step(grads_here(engine, layout))
            engine.under_way.clear()
            opt.load_state_dict(saved)
            one_more_step(engine, opt, layout)
            return opt.t

        assert on_ranks(RANKS, survive, engines=engines) == [4] * RANKS


def test_measured_gradients_in_buckets_are_those_of_a_step(monkeypatch):
    def step(engine, arrives):
        opt, _ = cases.on_rank(engine, "rows", "paper", np.float32, {})
        grads = grads_here(engine, "rows", dtype=np.float32)
        if arrives:
            for name, grad in grads.items():
                opt.measure(name, grad)
        opt.step({} if arrives else grads)
        return bytes_of(opt)[0]

    expected = on_ranks(RANKS, step, False)
    monkeypatch.setattr(Channel, "bucket_length", 1)
    assert on_ranks(RANKS, step, True, engines=starting_engines()) == expected
