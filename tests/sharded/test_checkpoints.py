"""Checkpoints outlive the grid: saved on some ranks, loaded on others, or without any."""

from __future__ import annotations

import json

import numpy as np
import pytest

from adafactor_native import Optimizer
from sharded import cases
from sharded.cuts import local
from sharded.thread_engine import on_ranks

SETTINGS = {"beta1": 0.9}
SAVED_ON = [("grid", 4), ("flat", 3), ("owned", 3), ("hybrid", 4), ("tiles", 4)]
LOADED_ON = [("grid", 4), ("rows", 3), ("flat", 1), ("cols", 4), ("owned", 2), ("last_is_empty", 3)]


def stepped(engine, layout, gather):
    opt, _ = cases.on_rank(engine, layout, "paper", np.float32, SETTINGS)
    return opt.state_dict(True, gather=gather)


def fresh(engine, layout):
    """Return an optimizer of zeros, to be loaded into."""
    pieces = cases.pieces_here(engine, layout)
    params = {
        name: local(np.zeros(cases.SHAPES[name], np.float32), pieces[name]) for name in pieces
    }
    shards = {name: shard for name, (shard, _) in pieces.items() if shard is not None}
    return Optimizer(params, comm=engine, shards=shards, **SETTINGS)


def header_of(state):
    """Return what a header says, whatever the order of tensors, which goes by the ranks."""
    header = json.loads(state["header"].tobytes())
    return {**header, "tensors": sorted(header["tensors"], key=lambda tensor: tensor["name"])}


def same(state, expected):
    assert state.keys() == expected.keys()
    assert header_of(state) == header_of(expected)
    for key, array in expected.items():
        if key == "header":
            continue
        np.testing.assert_array_equal(state[key], array, err_msg=key)
        assert state[key].dtype == array.dtype


@pytest.mark.parametrize("saved_on", SAVED_ON, ids=str)
def test_saved_and_loaded_elsewhere(saved_on):
    layout, ranks = saved_on
    pieces = on_ranks(ranks, stepped, layout, False)
    whole = on_ranks(ranks, stepped, layout, True)
    for state in whole[1:]:
        same(state, whole[0])

    def load(engine, layout, state):
        opt = fresh(engine, layout)
        opt.load_state_dict(state)
        assert opt.t == cases.N_STEPS
        return opt.state_dict(True, gather=True)

    for other, n in LOADED_ON:
        for given in (whole[0], pieces):
            for state in on_ranks(n, load, other, given):
                same(state, whole[0])

    alone = Optimizer(
        {name: np.zeros(s, np.float32) for name, s in cases.SHAPES.items()}, **SETTINGS
    )
    for given in (whole[0], pieces[::-1]):
        alone.load_state_dict(given)
        same(alone.state_dict(True), whole[0])


def test_a_run_goes_on_where_one_process_would():
    """Saved on 2 x 2, loaded on 3 ranks: the next step is the one that 4 ranks would take."""

    def go_on(engine, layout, state):
        opt = fresh(engine, layout)
        opt.load_state_dict(state)
        pieces = cases.pieces_here(engine, layout)
        grads = cases.arrays(np.float32, 9)
        opt.step({name: local(grads[name], pieces[name]) for name in pieces})
        return opt.state_dict(True, gather=True)

    saved = on_ranks(4, stepped, "grid", True)[0]
    by_four = on_ranks(4, go_on, "grid", saved)[0]
    by_three = on_ranks(3, go_on, "rows", saved)[0]
    for key, array in by_four.items():
        if array.dtype.kind == "f":
            scale = np.abs(array).max(initial=0)
            np.testing.assert_allclose(by_three[key], array, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_files(tmp_path, suffix):
    def save(engine):
        opt, _ = cases.on_rank(engine, "grid", "paper", np.float32, SETTINGS)
        opt.save(tmp_path / f"whole.{suffix}", params=True, gather=True)
        opt.save(tmp_path / f"rank{engine.rank}.{suffix}", params=True)
        return opt.state_dict(True, gather=True)

    saved = on_ranks(4, save)[0]

    def load(engine, path):
        opt = fresh(engine, "rows")
        opt.load(path)
        return opt.state_dict(True, gather=True)

    of_ranks = [tmp_path / f"rank{rank}.{suffix}" for rank in range(4)]
    for path in (tmp_path / f"whole.{suffix}", of_ranks):
        for state in on_ranks(3, load, path):
            same(state, saved)
    alone = Optimizer(
        {name: np.zeros(s, np.float32) for name, s in cases.SHAPES.items()}, **SETTINGS
    )
    alone.load(tmp_path / f"whole.{suffix}")
    same(alone.state_dict(True), saved)


def test_names_switches_and_storage_change_as_in_one_process():
    saved = on_ranks(4, stepped, "grid", True)[0]

    def load(engine):
        pieces = cases.pieces_here(engine, "rows")
        params = {
            f"new.{name}": local(np.zeros(cases.SHAPES[name], np.float32), pieces[name])
            for name in pieces
        }
        shards = {f"new.{name}": shard for name, (shard, _) in pieces.items() if shard is not None}
        opt = Optimizer(params, comm=engine, shards=shards, state_dtype="float32", lr=0.5)
        opt.load_state_dict(saved, rename="new.{}".format, keep=["lr"], convert=True)
        assert opt.param_groups[0]["lr"] == 0.5
        return opt.state_dict(True, gather=True)

    for state in on_ranks(3, load):
        for key, array in saved.items():
            kind, _, name = key.partition("/")
            if name and kind != "m":
                got = state[f"{kind}/new.{name}"]
                np.testing.assert_array_equal(got, array.astype(np.float32))


def test_what_is_refused_on_all_ranks():
    pieces = on_ranks(4, stepped, "grid", False)
    whole = on_ranks(4, stepped, "grid", True)[0]
    alone = Optimizer(
        {name: np.zeros(s, np.float32) for name, s in cases.SHAPES.items()}, **SETTINGS
    )
    with pytest.raises(ValueError, match=r"with gather=True, or a list of those of all ranks$"):
        alone.load_state_dict(pieces[0])
    with pytest.raises(ValueError, match=r"^states are of ranks 0, 1, 3, must be of all 4"):
        alone.load_state_dict([*pieces[:2], pieces[3]])
    torn = {**whole, "exp_row/w": whole["exp_row/w"][1:]}
    header = whole["header"].tobytes().replace(b'"t": 3', b'"t": 4')
    later = {**whole, "header": np.frombuffer(header, np.uint8)}

    def refuse(engine, states, error, match):
        opt = fresh(engine, "rows")
        with pytest.raises(error, match=match):
            opt.load_state_dict(states[engine.rank])
        assert opt.t == 0
        assert not any(array.any() for array in opt.params.values())
        opt.load_state_dict(whole)

    on_ranks(
        3, refuse, [whole, torn, whole], ValueError, r"^rank 1: state\['exp_row/w'\] has shape"
    )
    message = r"^the state that rank 2 loads is another than that of rank 0"
    on_ranks(3, refuse, [whole, whole, later], ValueError, message)
