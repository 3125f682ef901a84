"""What ranks have to agree on when an optimizer is made, and what they are told if they do not."""

from __future__ import annotations

import numpy as np
import pytest

from adafactor_native import Optimizer
from adafactor_native.sharding import FlatShard, Shard
from sharded.thread_engine import on_ranks


def refused(engine, error, of_rank):
    params, settings = of_rank(engine.rank)
    with pytest.raises(error) as raised:
        Optimizer(params, comm=engine, **settings)
    return str(raised.value)


def message(of_rank, error=ValueError, ranks=2):
    messages = set(on_ranks(ranks, refused, error, of_rank))
    assert len(messages) == 1, messages
    return messages.pop()


def boxes(*given):
    """Return what makes rank r's model: a matrix of (rows, cols) at an offset, of shape (6, 4)."""

    def of_rank(rank):
        shape, offset = given[rank]
        return {"w": np.ones(shape)}, {"shards": {"w": Shard((6, 4), offset)}}

    return of_rank


def ranges(*given):
    def of_rank(rank):
        start, length = given[rank]
        return {"w": np.ones(length)}, {"shards": {"w": FlatShard((6, 4), start)}}

    return of_rank


@pytest.mark.parametrize(
    ("of_rank", "expected"),
    [
        (
            boxes(((3, 4), (0, 0)), ((2, 4), (3, 0))),
            "params['w'] has no rank with 4 of its 24 elements",
        ),
        (
            boxes(((4, 4), (0, 0)), ((3, 4), (3, 0))),
            "params['w'] is [0:4, 0:4] on rank 0 and [3:6, 0:4] on rank 1, which overlap",
        ),
        (
            boxes(((3, 4), (0, 0)), ((3, 4), (4, 0))),
            "params['w'] is [4:7, 0:4] on rank 1, must be within",
        ),
        (
            ranges((0, 10), (11, 13)),
            "params['w'] has no rank with [10:11] of its elements in C order",
        ),
        (
            ranges((0, 10), (10, 13)),
            "params['w'] has no rank with [23:24] of its elements in C order",
        ),
        (
            ranges((0, 10), (9, 15)),
            "params['w'] is [0:10] of its elements in C order on rank 0 and [9:24]",
        ),
        (
            ranges((0, 10), (10, 15)),
            "params['w'] is [10:25] of its elements in C order on rank 1, must be",
        ),
    ],
)
def test_gaps_and_overlaps(of_rank, expected):
    assert message(of_rank).startswith(expected)


def test_overlap_hidden_by_a_gap():
    """As many elements as the whole has, and yet not the whole."""
    of_rank = boxes(((3, 4), (0, 0)), ((3, 4), (1, 0)))
    assert "overlap" in message(of_rank)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (({"lr": 1.0}, {"lr": 2.0}), "lr of group 0 is 1.0 on rank 0 and 2.0 on rank 1"),
        (({"beta1": 0.9}, {}), "beta1 of group 0 is 0.9 on rank 0 and None on rank 1"),
        (({"max_grad_norm": 1.0}, {}), "max_grad_norm is 1.0 on rank 0 and None on rank 1"),
        (({"seed": 1}, {"seed": 2}), "seed is 1 on rank 0 and 2 on rank 1"),
        (({"convention": "torch"}, {}), "convention is 'torch' on rank 0 and 'paper' on rank 1"),
    ],
)
def test_hyper_parameters(settings, expected):
    assert message(lambda rank: ({"w": np.ones(3)}, settings[rank])).startswith(expected)


def test_models():
    dtypes = (np.float32, np.float64)
    assert message(lambda rank: ({"w": np.ones(3, dtypes[rank])}, {})) == (
        "the dtype of params['w'] is float32 on rank 0 and float64 on rank 1, must be the same on all ranks"
    )
    assert message(lambda rank: ({"w": np.ones(3 + rank)}, {})).startswith(
        "the global shape of params['w'] is (3,) on rank 0 and (4,) on rank 1"
    )
    assert message(lambda rank: ([{"params": {"w": np.ones(3)}}] * (1 + rank), {})).startswith(
        "rank 1: "
    )
    orders = (("a", "b"), ("b", "a"))
    assert message(lambda rank: ({name: np.ones(3) for name in orders[rank]}, {})).startswith(
        "params['b'] comes before params['a'] on rank 1"
    )
    groups = (
        [{"params": {"a": np.ones(3)}}, {"params": {"b": np.ones(3)}}],
        [{"params": {"b": np.ones(3)}}, {"params": {"a": np.ones(3)}}],
    )
    assert message(lambda rank: (groups[rank], {})).startswith(
        "params['b'] is in group 1 on rank 0 and in group 0 on rank 1"
    )


def test_an_error_of_one_rank_is_raised_by_all():
    text = message(lambda rank: ({"w": np.ones(3) if rank else 1.0}, {}), TypeError)
    assert text.startswith("rank 0: params['w'] is a float")
    assert message(lambda rank: ({"w": np.ones(3)}, {"lr": -rank})).startswith("rank 1: lr is -1.0")
    nonfinite = ({}, {"nonfinite": "stop"})
    assert message(lambda rank: ({"w": np.ones(3)}, nonfinite[rank])).startswith(
        "rank 1: nonfinite"
    )
    wrong = {"shards": {"v": Shard((3,), (0,))}}
    assert message(lambda rank: ({"w": np.ones(3)}, wrong)).startswith("rank 0: shards has 'v'")
    assert message(lambda rank: ({"w": np.ones(3)}, {"carry_param_rms": True})).startswith(
        "rank 0: carry_param_rms is True, must be False"
    )


def test_names_of_all_ranks_in_one_order():
    """Whole tensors on some ranks each: the order is one in which each rank's own order holds."""
    names = (("a", "c"), ("b", "c", "d"), ("d", "e"), ())

    def make(engine):
        params = {name: np.ones((2, 3)) for name in names[engine.rank]}
        opt = Optimizer(params, comm=engine)
        report = opt.step({name: np.ones((2, 3)) for name in params})
        return opt.names, report.stepped.all(), report.rms_u.tolist(), float(report.grad_norm)

    results = on_ranks(4, make)
    assert all(result == results[0] for result in results)
    assert sorted(results[0][0]) == ["a", "b", "c", "d", "e"]
    for own in names:
        assert [name for name in results[0][0] if name in own] == list(own)
    assert results[0][3] == pytest.approx(np.sqrt(5 * 6))
