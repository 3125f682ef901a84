"""All-reduces of NumPy arrays by torch.distributed."""

import pytest
import torch.distributed as dist

import ranks
from adafactor_native.sharding.torch_engine import TorchEngine


@pytest.fixture(scope="module")
def found():
    return ranks.run(3, "sharded_torch.engine_cases:results")


def test_every_rank_knows_its_place(found):
    assert [(one["rank"], one["size"]) for one in found] == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.parametrize("dtype", ["float64", "int64"])
@pytest.mark.parametrize(
    ("op", "wanted"),
    [("sum", [3.0 + 3 * k for k in range(7)]), ("max", [2.0 + k for k in range(7)])],
)
def test_all_ranks_have_the_result(found, op, dtype, wanted):
    assert [one[op, dtype] for one in found] == [wanted] * 3


def test_arrays_of_no_axes(found):
    assert [one["scalar"] for one in found] == [4.5] * 3


def test_a_group_of_some_ranks(found):
    assert [one["pair"] for one in found] == [
        (0, 2, [2.0] * 3),
        (1, 2, [2.0] * 3),
        "this process is not in the group, must be one of its ranks",
    ]


def test_other_arrays_are_refused(found):
    must = "must be a C-contiguous array of float64 or int64"
    assert found[0]["strided"] == f"array is of float64, strided, {must}"
    assert found[0]["half"] == f"array is of float16, {must}"


def test_without_a_group():
    with pytest.raises(RuntimeError, match=r"no process group: call torch\.distributed\.init"):
        TorchEngine()


def test_a_group_that_is_not_for_the_cpu(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda group: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
    monkeypatch.setattr(dist, "get_backend_config", lambda group: "cuda:nccl")
    with pytest.raises(ValueError, match=r"the backends cuda:nccl, must have one for the CPU"):
        TorchEngine()


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_survivors_raise_within_the_timeout(how):
    timeout = 3.0
    seen = ranks.run(3, "sharded_torch.engine_cases:survivors", timeout, how, dying=[0, 1, 2])
    again = None if how == "dies" else 9.0  # 3 of each rank
    assert seen[1] == again
    for message, seconds, afterwards in (seen[0], seen[2]):
        assert message.startswith("an all-reduce between the ranks failed (")
        assert seconds < timeout + 5
        assert afterwards == again
