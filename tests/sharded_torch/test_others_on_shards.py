"""Other Adafactors for torch fail on parameters in pieces, or are wrong without a word; ours are right.

The table is that of ``python bench/sharded_peers.py``. Where a library has learnt it, a test fails, and the
documentation has to say so.
"""

import functools

import pytest

import ranks
from sharded_peers import EXACT, OPTIMIZERS, SHAPES
from torch_layouts import layouts_for

EACH = [(n, layout) for n in (2, 4) for layout in layouts_for(n)]


@functools.cache
def outcomes(n):
    (found, *_) = ranks.run(n, "sharded_peers:outcomes", list(OPTIMIZERS), layouts_for(n))
    return found


@pytest.fixture(autouse=True)
def transformers(require_installed):
    require_installed("transformers")


@pytest.mark.parametrize(("n", "layout"), EACH)
@pytest.mark.parametrize("tensor", SHAPES)
@pytest.mark.parametrize(
    "optimizer", [name for name in OPTIMIZERS if name.startswith("adafactor_native")]
)
def test_ours_are_right(n, layout, tensor, optimizer):
    assert outcomes(n)[optimizer][layout][tensor] <= EXACT


@pytest.mark.parametrize(("n", "layout"), EACH)
@pytest.mark.parametrize("optimizer", ["torch.optim.Adafactor", "transformers.Adafactor"])
def test_theirs_fail_on_matrices_and_lose_factoring_under_fsdp1(n, layout, optimizer):
    outcome = outcomes(n)[optimizer][layout]["matrix"]
    if layout.startswith("FSDP1"):
        assert outcome > 0.01
    else:
        assert outcome.startswith("RuntimeError: aten.")


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("tensor", ["vector", "batch"])
def test_torchs_is_wrong_on_vectors_and_batches_without_a_word(n, tensor):
    assert outcomes(n)["torch.optim.Adafactor"]["fully_shard"][tensor] > 0.01
