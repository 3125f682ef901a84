"""States of sharded optimizers: saved on one grid, loaded on another or on one machine."""

import pytest

import ranks

CASES = "sharded_torch.checkpoint_cases:"


@pytest.mark.parametrize("kind", ["torch", "huggingface"])
def test_saved_on_a_square_and_loaded_on_other_grids(tmp_path, kind):
    """The steps after it are those of the run that went on."""
    folder = str(tmp_path / "checkpoint")
    (wanted, *_) = ranks.run(4, CASES + "save", folder, (2, 2), kind)
    for n, mesh in ((3, (3,)), (1, (1,)), (4, (4,))):
        for found, counts in ranks.run(n, CASES + "load", folder, mesh, kind):
            assert counts == {3}
            for name, tensor in wanted.items():
                apart = (found[name] - tensor).abs().max()
                assert apart <= 1e-12 * tensor.abs().max(), name


@pytest.mark.parametrize("kind", ["torch", "huggingface"])
def test_a_state_of_one_process_loads_on_ranks(kind):
    assert max(ranks.run(3, CASES + "load_whole", kind)) <= 1e-12


def test_states_that_would_lose_something_are_refused_as_by_one_process():
    """Masters that nothing continues, and numbers beyond the dtype of the state."""
    for alone, on_ranks in ranks.run(2, CASES + "refused"):
        assert "only an optimizer with masters='float32' continues" in alone[0]
        assert on_ranks[0] == alone[0]
        assert "has numbers beyond torch.float32, must have none" in alone[1]
        assert "has numbers beyond torch.float32, must have none" in on_ranks[1]


def test_fully_shard_over_uneven_tensor_parallelism():
    for apart, placements in ranks.run(4, CASES + "tensor_parallel"):
        assert max(apart.values()) <= 1e-12
        assert "_StridedShard" in placements["0.weight"]
