"""What is wrong on one rank is raised by all, with the same words, and nothing is written anywhere."""

from __future__ import annotations

import warnings

import ml_dtypes
import numpy as np
import pytest

from adafactor_native import Optimizer, SkippedStepWarning, convert
from adafactor_native.sharding import CommunicationError
from sharded import cases
from sharded.cuts import local
from sharded.thread_engine import GroupingEngine, Killed, Shared, ThreadEngine, on_ranks

RANKS = 3
LAYOUTS_OF_FAULTS = ["rows", "cols", "grid", "tiles", "flat", "hybrid", "last_is_empty", "owned"]


def bytes_of(opt):
    """Return all that a step may write on this rank."""
    arrays = [*opt.params.values(), *(a for kinds in opt.state.values() for a in kinds.values())]
    return [array.tobytes() for array in arrays], opt.t, opt.counts.tolist(), opt.skipped


def grads_here(engine, layout, step=1, dtype=np.float64):
    pieces = cases.pieces_here(engine, layout)
    whole = cases.arrays(dtype, step)
    return {name: local(whole[name], piece) for name, piece in pieces.items()}


def one_more_step(engine, opt, layout):
    """Take a step, as after any error that all ranks raised, and return the state of all."""
    opt.step(grads_here(engine, layout, 9))
    return opt.state_dict(True, gather=True)


def refused(engine, layout, spoil, error, **settings):
    """Return what this rank raises for gradients that `spoil` changes on one rank."""
    opt, _ = cases.on_rank(engine, layout, "paper", np.float64, settings)
    before = bytes_of(opt)
    grads = grads_here(engine, layout)
    spoil(engine.rank, grads, opt)
    with pytest.raises(error) as raised:
        opt.step(grads)
    assert bytes_of(opt) == before
    for group in opt.param_groups:
        group["lr"] = 1e-2
    return str(raised.value), one_more_step(engine, opt, layout)


def require_one_message(layout, spoil, error, **settings):
    results = on_ranks(RANKS, refused, layout, spoil, error, **settings)
    messages = {message for message, _ in results}
    assert len(messages) == 1, messages
    alone, _ = cases.one_process("paper", np.float64, settings)
    alone.step(cases.arrays(np.float64, 9))
    for _, state in results:
        for key, array in alone.state_dict(True).items():
            if array.dtype.kind == "f":
                np.testing.assert_allclose(state[key], array, rtol=1e-9)
    return messages.pop()


@pytest.mark.parametrize("layout", LAYOUTS_OF_FAULTS)
def test_nan_is_named_by_its_global_index(layout):
    def spoil(rank, grads, opt):
        whole = np.zeros(cases.SHAPES["w"])
        whole[150, 7] = np.nan
        if "w" in grads:
            piece = cases.pieces_here(Place(rank), layout)["w"]
            grads["w"] = grads["w"] + local(whole, piece)

    message = require_one_message(layout, spoil, FloatingPointError)
    assert message == "grads['w'][150, 7] is nan, must be finite; nothing was changed on any rank"


class Place:
    """A rank as `cases.pieces_here` asks for it."""

    def __init__(self, rank):
        self.rank, self.size = rank, RANKS


@pytest.mark.parametrize("layout", ["rows", "flat", "owned"])
def test_errors_of_one_rank(layout):
    def spoil(rank, grads, opt):
        if rank == 1:
            grads["nobody's"] = np.ones(3)

    message = require_one_message(layout, spoil, ValueError)
    assert message == 'rank 1: grads has "nobody\'s", must have names of params only'


def test_wrong_shape_of_one_rank():
    def spoil(rank, grads, opt):
        if rank == 2:
            grads["w"] = grads["w"][:, 1:]

    message = require_one_message("rows", spoil, ValueError)
    assert message.startswith("rank 2: grads['w'] has shape"), message


def test_read_only_param_of_one_rank():
    def refuse(engine):
        opt, _ = cases.on_rank(engine, "rows", "paper", np.float64, {})
        before = bytes_of(opt)
        opt.params["b"].flags.writeable = engine.rank != 1
        with pytest.raises(ValueError, match=r"^rank 1: params\['b'\] is read-only"):
            opt.step(grads_here(engine, "rows"))
        assert bytes_of(opt) == before

    on_ranks(RANKS, refuse)


@pytest.mark.parametrize("layout", ["rows", "grid", "flat", "replicas", "hybrid"])
def test_gradient_on_some_ranks_only(layout):
    def spoil(rank, grads, opt):
        if rank == 1:
            grads["w"] = None

    message = require_one_message(layout, spoil, ValueError)
    assert message.startswith("grads['w'] is None on some ranks and given on others")


def test_dtypes_of_gradients_differ():
    def spoil(rank, grads, opt):
        if rank == 1:
            grads["w"] = grads["w"].astype(np.float32)

    message = require_one_message("rows", spoil, TypeError)
    assert message.startswith("grads['w'] is of different dtypes")


def test_hyper_parameters_differ():
    def spoil(rank, grads, opt):
        opt.param_groups[0]["lr"] = 0.1 if rank == 2 else 0.2

    message = require_one_message("rows", spoil, ValueError)
    assert (
        message == "lr of group 0 is 0.2 on rank 0 and 0.1 on rank 2, must be the same on all ranks"
    )


def test_schedule_that_fails_on_one_rank():
    def refuse(engine):
        def lr(t):
            if engine.rank == 1 and t == 4:
                raise ZeroDivisionError("no such step")
            return 1e-2

        opt, _ = cases.on_rank(engine, "rows", "paper", np.float64, {"lr": lr})
        before = bytes_of(opt)
        with pytest.raises(RuntimeError, match=r"^rank 1: no such step$"):
            opt.step(grads_here(engine, "rows"))
        assert bytes_of(opt) == before

    on_ranks(RANKS, refuse)


def test_ranks_at_different_steps():
    def refuse(engine):
        opt, _ = cases.on_rank(engine, "rows", "paper", np.float64, {})
        if engine.rank == 1:
            opt._tensors.set_counts(7, 0, [7] * len(opt.names))
        before = bytes_of(opt)
        with pytest.raises(ValueError, match=r"^t is 3 on one rank and 7 on another"):
            opt.step(grads_here(engine, "rows"))
        assert bytes_of(opt) == before

    on_ranks(RANKS, refuse)


@pytest.mark.parametrize("layout", LAYOUTS_OF_FAULTS)
def test_steps_that_are_skipped_are_skipped_by_all(layout):
    def skip(engine):
        opt, _ = cases.on_rank(engine, layout, "paper", np.float64, {"nonfinite": "skip"})
        before = bytes_of(opt)
        grads = grads_here(engine, layout)
        if "w" in grads and grads["w"].size:
            grads["w"].flat[-1] = np.inf
        report = opt.step(grads)
        assert report.skipped
        assert bytes_of(opt)[:-1] == before[:-1]
        assert opt.skipped == 1
        return one_more_step(engine, opt, layout)

    with pytest.warns(SkippedStepWarning):
        states = on_ranks(RANKS, skip)
    alone, _ = cases.one_process("paper", np.float64, {})
    alone.step(cases.arrays(np.float64, 9))
    for key, array in alone.state_dict(True).items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(states[0][key], array, rtol=1e-9)


@pytest.mark.parametrize("layout", ["rows", "grid", "flat", "owned"])
def test_a_tensor_without_gradients_anywhere_is_left_out(layout):
    def step(engine):
        opt, _ = cases.on_rank(engine, layout, "paper", np.float64, {})
        grads = grads_here(engine, layout)
        if "w" in grads:
            grads["w"] = None
        report = opt.step(grads)
        return report.stepped["w"], opt.counts.tolist(), opt.names

    for stepped, counts, names in on_ranks(RANKS, step):
        assert not stepped
        assert dict(zip(names, counts)) == {"w": 3, "wide": 4, "k": 4, "b": 4, "s": 4}


def calls_of_a_step(layout, kind, rank):
    def count(engine):
        opt, _ = cases.on_rank(engine, layout, "paper", np.float64, {})
        before = engine.n_calls
        opt.step(grads_here(engine, layout))
        return engine.n_calls - before

    return on_ranks(RANKS, count, kind=kind)[rank]


@pytest.mark.parametrize("kind", [ThreadEngine, GroupingEngine])
@pytest.mark.parametrize("layout", ["rows", "cols", "grid", "flat"])
def test_a_rank_that_dies_leaves_the_others_as_they_were(layout, kind):
    """At each exchange of a step; but for the last, after which others may be a step ahead."""
    for call in range(calls_of_a_step(layout, kind, 1)):
        shared = Shared(RANKS)
        engines = [kind(rank, shared) for rank in range(RANKS)]

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
            opt.load_state_dict(saved)
            one_more_step(engine, opt, layout)
            return opt.t

        assert on_ranks(RANKS, survive, engines=engines) == [4] * RANKS


def test_what_does_not_go_with_comm():
    def refuse(engine):
        opt, _ = cases.on_rank(engine, "rows", "paper", np.float64, {})
        calls = [
            lambda: opt.replace("b", np.ones(37)),
            lambda: opt.resize("b", np.ones(38)),
            lambda: opt.remove("b"),
            lambda: opt.reset("b"),
            lambda: opt.add_param_group({"params": {"c": np.ones(3)}}),
            lambda: opt.step_tensor("b", np.ones(37)),
            lambda: opt.__deepcopy__({}),
            lambda: opt.__getstate__(),
            lambda: convert.load_torch(opt, {}),
            lambda: convert.to_torch(opt),
            lambda: convert.load_optax(opt, {}),
            lambda: convert.to_optax(opt, {}),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="is not possible with comm: "):
                call()
        opt.atomic = "tensor"
        with pytest.raises(
            ValueError, match=r"^rank 0: atomic is 'tensor', must be 'all' with comm"
        ):
            opt.step(grads_here(engine, "rows"))

    on_ranks(2, refuse)
    with pytest.raises(ValueError, match=r"^shards is given, must be None without comm"):
        Optimizer({"w": np.ones(3)}, shards={})
    with pytest.raises(TypeError, match=r"^comm is a int, must be a communicator"):
        Optimizer({"w": np.ones(3)}, comm=3)


def rank_whose_masters_would_follow(engine, layout, masters, **settings):
    """Return this rank's optimizer after steps, a load, and weights that somebody has written."""
    half = ml_dtypes.bfloat16
    opt, _ = cases.on_rank(engine, layout, "paper", half, {"masters": masters, **settings})
    opt.load_state_dict(opt.state_dict(gather=True))
    for name, param in opt.params.items():
        if param.size:
            piece = cases.pieces_here(engine, layout)[name]
            param[...] = local(cases.arrays(half, 5)[name], piece)
            param.flat[::2] = 0
    return opt


@pytest.mark.parametrize("fault", ["nan", "shape", "missing", "param"])
@pytest.mark.parametrize("masters", ["float32", "split"])
@pytest.mark.parametrize("layout", ["rows", "grid", "owned"])
def test_masters_follow_nothing_where_another_rank_is_wrong(layout, masters, fault):
    error = FloatingPointError if fault in ("nan", "param") else ValueError

    def refuse(engine):
        opt = rank_whose_masters_would_follow(engine, layout, masters)
        grads = grads_here(engine, layout, dtype=np.float32)
        first = next(name for name, param in opt.params.items() if param.size)
        if engine.rank == 1:
            if fault == "nan":
                grads[first].flat[0] = np.nan
            elif fault == "shape":
                grads[first] = grads[first][None]
            elif fault == "missing":
                grads["nobody's"] = grads.pop(first)
            else:
                opt.params[first].flat[1] = np.inf
        before = bytes_of(opt)
        with pytest.raises(error) as raised:
            opt.step(grads)
        assert bytes_of(opt) == before
        return str(raised.value)

    assert len(set(on_ranks(RANKS, refuse))) == 1


@pytest.mark.parametrize("masters", ["float32", "split"])
def test_masters_follow_nothing_where_a_rank_is_killed(masters):
    def refuse(engine):
        opt = rank_whose_masters_would_follow(engine, "rows", masters)
        before = bytes_of(opt)
        if engine.rank == 1:
            engine.dies_at = engine.n_calls + 1
        with pytest.raises((CommunicationError, Killed)):
            opt.step(grads_here(engine, "rows", dtype=np.float32))
        assert bytes_of(opt) == before

    on_ranks(RANKS, refuse)


@pytest.mark.parametrize("masters", ["float32", "split"])
def test_masters_follow_nothing_in_a_sharded_step_that_is_left_out(masters):
    def skip(engine):
        opt = rank_whose_masters_would_follow(engine, "rows", masters, nonfinite="skip")
        grads = grads_here(engine, "rows", dtype=np.float32)
        before = bytes_of(opt)[0]
        if engine.rank == 1:
            grads["w"][0, 0] = np.nan
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert opt.step(grads).skipped
        assert bytes_of(opt)[0] == before
        opt.step(grads_here(engine, "rows", dtype=np.float32))
        other = rank_whose_masters_would_follow(engine, "rows", masters, nonfinite="skip")
        other.step(grads_here(engine, "rows", dtype=np.float32))
        assert bytes_of(opt)[0] == bytes_of(other)[0]

    on_ranks(RANKS, skip)
