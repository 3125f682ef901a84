"""What one rank does and the others do not is said by all ranks, and nobody waits for ever."""

import functools

import pytest

import ranks

MODULE = "sharded_torch.agreement_cases:"


@functools.cache
def everyones():
    return ranks.run(2, MODULE + "everything")


def found_by_all(case):
    found = [mine[case] for mine, _ in everyones()]
    assert found[0] == found[1]
    return found[0]


def test_what_one_rank_has_changed_since_the_last_step():
    found = found_by_all("changed_on_one_rank")
    assert len(found) == 5
    still = "at the last step and is so still on other ranks, must be changed on all ranks alike"
    for change, (message, same, again, count) in found.items():
        assert message.startswith("ValueError: rank 1: "), change
        assert message.endswith(still), change
        assert (same, again, count) == (True, None, 2), change
    assert "parameter 1 in pieces is gone, was 'q'" in found["frozen"][0]
    assert "sums is exact, was fast" in found["sums"][0]
    assert "what group 0 keeps is Kept(" in found["state_dtype"][0]
    assert "parameter 2 in pieces is 'r'" in found["another_group"][0]
    assert "with a gradient of (Partial(sum),)" in found["partial_grad"][0]


def test_what_all_ranks_have_changed():
    counts = found_by_all("changed_on_all_ranks")
    assert counts == [[1, 1], [2, 1], [3, 1], [4, 2]]


def test_ranks_that_differ_from_the_first_step_on():
    found = found_by_all("differs_from_the_first")
    assert found["fewer"].startswith("ValueError: parameter 1 in pieces is 'q', torch.float32 of")
    assert found["fewer"].endswith(" on rank 0 and none on rank 1, must be the same on all ranks")
    assert found["order"].startswith("ValueError: parameter 0 in pieces is 'p', torch.float32 of")
    assert found["sums"].startswith("ValueError: sums is fast on rank 0 and exact on rank 1")
    assert found["sum of p"] == 48


def test_a_state_that_one_rank_has_lost():
    """A step that asks for no more than the state is one where all ranks ask for no more."""
    found = found_by_all("state_on_one_rank")
    assert found["lost"].startswith("ValueError: t is 0 on one rank and 1 on another")
    assert found["begun"] == 0
    assert found["lost, of no steps"] == (None, 1)
    assert found["another lr"].startswith("ValueError: lr and decay of group 0 is (1.0, 0.0)")


def test_a_scaler_that_one_rank_knows_of():
    assert found_by_all("found_inf_on_one_rank") == [0, 1]


def test_a_plain_gradient_of_one_rank():
    message, again, count = found_by_all("plain_grad_on_one_rank")
    assert message.startswith("ValueError: rank 1: params['q'] is whole on this rank and others")
    assert (again, count) == (None, 1)


def test_gradients_that_are_cut_anew_by_all_ranks():
    """Also by those that have no element of the parameter."""
    found = ranks.run(3, MODULE + "uncut_grads")
    assert found == [found[0]] * 3
    norm, first = found[0]
    assert norm == pytest.approx(3 * 6**0.5)
    assert first == pytest.approx(0.99)


@pytest.mark.parametrize("masters", ["float32", "split"])
def test_masters_follow_what_one_rank_has_written(masters):
    on_0, on_1 = (followed[masters] for _, followed in everyones())
    assert set(on_0.values()) == {1.0}
    assert set(on_1.values()) == {5.0}
    assert len(on_1) == 4
