"""The fuzzers of tests/fuzz find nothing in a second, and find each fault that is planted.

Hours by hand: see their docstrings. In the gate they run for a minute, with a seed of that run.
"""

import contextlib
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import adafactor_native as an
import sharded_ranks
from fuzz import shard_models, shards, states, steps
from fuzz.driver import Tally
from fuzz.models import draw
from fuzz.runs import Fault

FOLDER = Path(__file__).parent / "fuzz"
SEED = 7


@functools.cache
def number_of_plain_model(of, nonfinite):
    """The first model of a seed that is of a kind and of plain numbers, with more than one step."""
    for number in range(10_000):
        model = draw(SEED, number)
        if (
            model.kind == of
            and model.of_params == model.of_grads == "plain"
            and not model.spoilt
            and len(model.ways) > 2
            and set(model.ways) == {"step"}
            and model.options["nonfinite"] == nonfinite
        ):
            return number
    raise AssertionError("no such model")


def plain_model(of, nonfinite="raise"):
    number = number_of_plain_model(of, nonfinite)
    return draw(SEED, number), steps.ways(SEED, number)


def test_a_few_models_of_a_seed_that_is_always_the_same():
    tally = Tally()
    for number in range(25):
        steps.try_model(SEED, number, tally)
    assert tally.steps > 1000 and tally.compared > 100


def test_a_few_states_of_a_seed_that_is_always_the_same():
    tally = Tally()
    for number in range(60):
        states.try_input(SEED, number, tally)
    assert tally.steps > 3 and tally.left_out > 20


def test_a_few_models_in_pieces_of_a_seed_that_is_always_the_same():
    tally = Tally()
    for number in range(60):
        shards.try_model(SEED, number, tally)
    assert tally.steps > 500 and tally.compared > 100


def write_a_piece(ranks, k):
    """One element of the first rank that has one, by a unit in the last place and more."""
    piece = next(t.param for rank in ranks.tensors for t in rank if t.param.size)
    piece.flat[0] = piece.flat[0] * 1.5 + 1


def lose_a_step(ranks, k):
    """A rank that has counted one step less."""
    one = ranks.models[0]
    one.set_counts(max(one.t - 1, 0), one.skipped, [max(n - 1, 0) for n in one.counts().tolist()])


@pytest.mark.parametrize("spoil", [write_a_piece, lose_a_step])
def test_a_planted_fault_of_steps_in_pieces_is_found(spoil):
    found = 0
    for number in range(30):
        try:
            shards.run_model(shard_models.draw(SEED, number), Tally(), spoil)
        except Fault as fault:
            assert re.search(
                "differ|is off by|has changed|t is|finite elsewhere|must be|one process", str(fault)
            )
            found += 1
    assert found > 15


def test_a_rank_whose_numbers_are_lost_on_the_way_is_found(monkeypatch):
    """Sums that leave out the last rank's."""

    def lossy(arrays):
        return sum(arrays[:-1], np.zeros(arrays[0].size))

    found = 0
    monkeypatch.setattr(sharded_ranks, "added", lossy)
    for number in range(60):
        with contextlib.suppress(Fault):
            shards.run_model(shard_models.draw(SEED, number), Tally())
            continue
        found += 1
    assert found > 10


def first_of(run):
    return next(name for name, param in run.params.items() if param.size)


def flip_a_bit(run, k):
    param = run.params[first_of(run)]
    param.flat[0] = np.nextafter(param.flat[0], param.flat[0] + 1)


def write_beside(run, k):
    """A byte that lies before the first array."""
    run.arena[0] += 1


def write_state(run, k):
    for array in run.states()[first_of(run)].values():
        array.flat[0] += 1


def write_a_gradient(run, k):
    grad = next(g for g in run.grads[k].values() if g is not None and g.size)
    grad.flags.writeable = True
    grad.flat[0] += 1


@pytest.mark.parametrize("kind", ["Optimizer", "AdaFactor"])
@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (flip_a_bit, "differ in|report otherwise"),
        (write_beside, "bytes beside the elements"),
        (write_state, "differ in their state|differ in|report otherwise"),
        (write_a_gradient, "bytes beside the elements"),
    ],
)
def test_a_planted_fault_of_steps_is_found(spoil, found, kind):
    model, ways = plain_model(kind)
    steps.run_model(model, ways, Tally())
    with pytest.raises(Fault, match=found):
        steps.run_model(model, ways, Tally(), spoil=spoil)


@pytest.mark.parametrize("off", [1 + 1e-3, 1 - 1e-3])
def test_a_planted_fault_of_the_formula_is_found(off):
    found = 0
    for number in range(40):
        try:
            steps.run_model(draw(SEED, number), steps.ways(SEED, number), Tally(), lr_off=off)
        except Fault as fault:
            assert re.search("times its budget|not the reference's", str(fault))
            found += 1
    assert found > 5


def test_a_planted_write_before_an_error_is_found(monkeypatch):
    class Careless(an.Optimizer):
        def step(self, *arguments, **options):
            try:
                return super().step(*arguments, **options)
            except (FloatingPointError, TypeError, ValueError):
                next(p for p in self.params.values() if p.size).flat[0] = 3
                raise

    monkeypatch.setattr(an, "Optimizer", Careless)
    found = 0
    for number in range(120):
        model = draw(SEED, number)
        if model.kind == "Optimizer" and model.spoilt:
            try:
                steps.run_model(model, steps.ways(SEED, number), Tally())
            except Fault as fault:
                assert "an error has changed arrays" in str(fault)
                found += 1
    assert found > 5


def test_a_planted_nan_of_other_bits_is_found():
    def spoil(run, k):
        run.params[first_of(run)].flat[0] = -np.nan

    model, ways = plain_model("Optimizer", nonfinite="propagate")
    with pytest.raises(Fault, match="have other bits"):
        steps.run_model(model, ways, Tally(), spoil=spoil)


def test_planted_faults_of_loading_are_found():
    """A load that changes something and then refuses, and one that takes what is no state."""

    def torn(opt, state, how):
        param = next(iter(opt.params.values())) if isinstance(opt, an.Optimizer) else opt.v
        if param is not None:
            param.flat[0] += 1
        raise ValueError("refused")

    def trusting(opt, state, how):
        tensors = opt.state if isinstance(opt, an.Optimizer) else {"0": {"v": opt.v}}
        means = next((s["v"] for s in tensors.values() if s.get("v") is not None), None)
        if means is not None:
            means.flat[0] = -1

    for load in (torn, trusting):
        with pytest.raises(
            (Fault, ValueError), match=r"changed the optimizer|mean of squares|v of"
        ):
            for number in range(200):
                states.try_input(SEED, number, Tally(), load_by=load)


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK),
    reason="the system does not tell the most memory that a process held since some moment",
)
@pytest.mark.parametrize("by", ["a load", "a pickle"])
def test_planted_memory_is_found(monkeypatch, by):
    def greedy(of):
        def method(opt, *arguments, **options):
            np.ones(states.MEMORY // 8 + 2**20)
            return of(opt, *arguments, **options)

        return method

    if by == "a pickle":
        for of in (an.AdaFactor, an.Optimizer):
            monkeypatch.setattr(of, "__setstate__", greedy(of.__setstate__))
    load = greedy(states.load) if by == "a load" else states.load
    with pytest.raises(Fault, match="MiB of memory for a state of a few hundred bytes"):
        for number in range(60):
            states.try_input(SEED, number, Tally(), load_by=load)


def test_a_crash_is_told_with_the_line_that_repeats_it(tmp_path):
    script = tmp_path / "steps.py"
    script.write_text(f"""
import os, signal, sys
sys.path.insert(0, {str(FOLDER.parent)!r})
import argparse
from fuzz.driver import main_loop
def try_one(seed, number, tally):
    if number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
main_loop(argparse.ArgumentParser(), "steps.py", try_one)
""")
    done = subprocess.run(
        [sys.executable, script, "--seed", "1", "--seconds", "1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "FOUND the process ended with -11" in done.stdout
    assert "python tests/fuzz/steps.py --seed 1 --model 3" in done.stdout
    assert "--first 4" in done.stdout


@pytest.mark.soak
@pytest.mark.parametrize("script", ["steps.py", "states.py"])
def test_a_quarter_of_a_minute_of_a_new_seed(script):
    done = subprocess.run(
        [sys.executable, FOLDER / script, "--seconds", "15"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
