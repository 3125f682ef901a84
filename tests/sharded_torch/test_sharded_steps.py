"""Optimizers of torch's kind on parameters in pieces: the steps are those of one process."""

import functools

import pytest

import ranks
from torch_layouts import layouts_for

CASES = "sharded_torch.step_cases:"
KINDS = ("torch", "huggingface", "optax", "big_vision", "numpy")
EACH = [(n, layout, kind) for n in (1, 2, 3, 4) for layout in layouts_for(n) for kind in KINDS]


@functools.cache
def run(n, case, *arguments):
    return ranks.run(n, CASES + case, *arguments, timeout_s=200)


@pytest.mark.parametrize(("n", "layout", "kind"), EACH)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-6)])
def test_steps_are_those_of_one_process(n, layout, kind, dtype, tolerance):
    """Relative to the largest change; in float32, whose numbers are rounded, to the largest number."""
    for found in run(n, "beside_one_process_in", dtype):
        if layout.startswith("FSDP1") and kind in ("optax", "big_vision") and n > 1:
            wanted = (
                "params['matrix'] is a FlatShard and its axes (1, 0) are factored, must be the last"
            )
            assert found[layout, kind].startswith(f"rank 0: {wanted}")
            continue
        of_change, of_number, states, norm = found[layout, kind]
        assert of_change <= (tolerance if dtype == "float64" else 1e-4)
        assert of_number <= tolerance
        assert states <= tolerance
        assert abs(norm) <= tolerance


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("layout", ["Shard(0)", "fully_shard"])
def test_options_mean_the_same(n, layout):
    """Cut at multiples of 64 rows, matrices have the same bits, and halves also those of random rounding."""
    for found in run(n, "options_beside_one_process", layout):
        assert len(found) == 8
        for option, (apart, is_equal) in found.items():
            is_double = option in ("max_grad_norm", "raise")
            is_float = option in ("float32", "state_dtype")
            assert apart <= (1e-6 if is_float else 1e-12), option
            assert is_double or (is_equal["matrix"] and is_equal["batch"]), option
            assert is_double or is_float or is_equal["vector"], option


@pytest.mark.parametrize("n", [2, 4])
def test_a_step_has_at_most_two_rounds_for_the_whole_model(n):
    (found, *_) = run(n, "rounds")
    for (layout, n_tensors), calls in found.items():
        assert calls <= 4, (layout, n_tensors)
        assert calls == found[layout, 1], (layout, n_tensors)


def test_a_nan_on_one_rank_changes_nothing_on_any():
    found = run(3, "nonfinite", "raise")
    message = "grads['w'][7, 2] is nan, must be finite; nothing was changed on any rank"
    for _, said, same, skipped, count, _ in found:
        assert (said, same, skipped, count) == (message, True, 0, 2)


def test_a_nan_on_one_rank_leaves_the_step_out_on_all():
    for _, said, same, skipped, count, finite in run(3, "nonfinite", "skip"):
        assert (said, same, skipped, count, finite) == (None, True, 1, 2, True)


def test_a_nan_goes_through_by_default():
    for _, said, same, skipped, count, finite in run(3, "nonfinite", "propagate"):
        assert (said, same, skipped, count, finite) == (None, False, 0, 3, False)


def test_an_error_of_one_rank_is_raised_by_all():
    everyones = run(3, "errors_of_one_rank")
    for found in everyones:
        assert found == everyones[0]
    found = everyones[0]
    assert "w" in found["no gradient on one"][0] and found["no gradient on one"][0].startswith(
        "ValueError"
    )
    assert found["no gradient on one"][1] == 48
    assert found["another lr"][0].startswith("ValueError: lr and decay of group 0 is")
    assert found["another lr"][1] == 48
    assert found["a bad state on one"] == (
        "TypeError: rank 1: 'row_var' of params['w'] is a str, must be a tensor",
        1,
    )
    assert found["another count"][0].startswith("ValueError: t is 1 on one rank and 7 on another")
    assert found["a bad lr on one"] == ("ValueError: rank 1: lr is nan, must be finite", 48)
    assert found["a bad eps on one"] == (
        "ValueError: rank 1: eps[0] is -1.0, must be a finite number >= 0 or None",
        48,
    )
    assert found["a bad lr on one, then a step"] == found["a bad eps on one, then a step"] == 1
    assert found["no gradient on all"] == (None, 0)


def test_what_is_refused():
    everyones = run(2, "refused")
    assert everyones[0] == everyones[1]
    found = everyones[0]
    assert "params[0] has the placement P(sum), must be sharded or replicated" in found["partial"]
    assert "must be whole for steps of single ones" in found["single"]
    assert found["backward"] == found["single"]
    assert found["mixed"].startswith(
        "rank 0: params['q'] is whole on this rank and others lie in pieces"
    )
    assert "call opt.take_flat_shards(module)" in found["not told"]
    assert found["no FSDP1"].startswith("the module has no parameter of FullyShardedDataParallel")


def test_a_plain_parameter_is_stepped_beside():
    for found in run(2, "beside_plain_ones"):
        assert found == (pytest.approx(0.99), pytest.approx(1.98), [1, 1])


def test_a_plain_parameter_counts_as_those_in_pieces():
    """A warm-up from lr 0 is a step of both, and one that asks for the state alone is of neither."""
    for found in run(2, "first_steps_beside_plain_ones"):
        assert found == {"none": [1, 1], "p": [1, 1], "p and q": [0, 0]}


def test_replicas_have_the_same_bits():
    (found, *_) = run(4, "replicas")
    pieces, placements = found["rows"]  # of a mesh of two replicas of two parts
    assert pieces[0] == pieces[2]
    assert pieces[1] == pieces[3]
    assert [one[2] for one in pieces] == [pieces[0][2]] * 4  # the column means
    assert placements == ["(Replicate(), Shard(dim=0))", "(Replicate(), Replicate())"]
    pieces, placements = found["grid"]
    assert pieces[0][1] == pieces[1][1]  # row means along a row of ranks
    assert pieces[0][2] == pieces[2][2]
    assert placements == ["(Shard(dim=0), Replicate())", "(Replicate(), Shard(dim=1))"]


def test_parameters_without_a_gradient():
    for counts, untouched in run(2, "frozen_and_late"):
        assert counts == [[1, None, None], [2, None, None], [3, 1, None]]
        assert untouched == 24


def test_what_was_replaced_is_followed():
    for apart, has_norm in run(2, "replaced_and_moved"):
        assert apart <= 1e-12
        assert has_norm


def test_a_scaler_that_finds_an_infinity_on_one_rank():
    for left_out, norm, count in run(2, "scaled"):
        assert left_out == 24
        assert norm == pytest.approx(24**0.5 / 4)
        assert count == 1


def test_an_optimizer_of_numpy_arrays_by_a_process_group():
    """With exact sums there is one result, whatever the number of ranks."""
    hashes = {one for n in (1, 2, 3) for one in run(n, "numpy_optimizer", "exact")}
    assert len(hashes) == 1
