"""With ``sums="exact"`` there is one result, however parameters are cut, and whatever reduces the sums."""

import functools

import pytest
import torch

import ranks
from adafactor_native.torch import Adafactor
from sharded_torch import exact_cases

MODULE = "sharded_torch.exact_cases:"


@functools.cache
def run(n, case):
    return ranks.run(n, MODULE + case, timeout_s=200)


@functools.cache
def wanted(case):
    return exact_cases.plain(case)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("case", exact_cases.CASES)
def test_one_hash_for_all_layouts_and_ranks(n, case):
    everyones = run(n, "by_ranks")
    makers = [maker for of_case, maker in everyones[0] if of_case == case]
    assert len(makers) >= (5 if case == "torch" else 1)
    for found in everyones:
        for maker in makers:
            params, state = found[case, maker]
            assert params == wanted(case)[0], maker
            assert state == wanted(case)[1] or (state is None and maker.startswith("FSDP1")), maker


@pytest.mark.parametrize("case", [name for name, each in exact_cases.CASES.items() if each[-1]])
def test_one_process_of_numpy_arrays_has_the_same(case):
    assert exact_cases.numpy_optimizer(case) == wanted(case)


def test_plain_parameters_beside_pieces_are_refused_on_all_ranks():
    everyones = run(2, "beside_plain_ones")
    message, same = everyones[0]
    assert everyones[1] == (message, same)
    assert message.startswith("rank 1: params['q'] is whole on this rank and others lie in pieces")
    assert "distribute_tensor(param, mesh, [Replicate()]) makes them" in message
    assert same


def made(**options):
    p = torch.nn.Parameter(torch.arange(15000.0).reshape(100, 150) / 15000)
    p.grad = torch.ones_like(p)
    return p, Adafactor([p], **options)


def test_a_state_goes_from_one_to_the_other():
    """States have the same form; the sums are chosen at each step."""
    p, fast = made()
    fast.step()
    q, exact = made(sums="exact")
    exact.load_state_dict(fast.state_dict())
    q.data.copy_(p.data)
    exact.step()
    fast.options.sums = "exact"
    fast.step()
    assert torch.equal(p, q)
    assert {key: x.shape for key, x in exact.state[q].items()} == {
        key: x.shape for key, x in fast.state[p].items()
    }
    fast.options.sums = "fast"
    fast.step()
    assert float(fast.state[p]["step"]) == 3


def test_steps_of_single_parameters_are_refused():
    p, opt = made(sums="exact")
    for call in (opt.fuse_backward, lambda: opt.step_param(p, opt.param_groups[0])):
        with pytest.raises(
            ValueError, match=r"sums is 'exact', must be 'fast' for steps of single"
        ):
            call()
    with pytest.raises(ValueError, match=r"must be 'fast' for measure_in_backward"):
        opt.measure_in_backward()
    with pytest.raises(ValueError, match=r"sums is 'sorted', must be 'fast' or 'exact'"):
        opt.options.sums = "sorted"


def test_what_is_measured_ahead_is_left_alone_where_sums_become_exact():
    p, opt = made()
    opt.step()
    q, exact = made(sums="exact")
    exact.load_state_dict(opt.state_dict())
    q.data.copy_(p.data)
    hooked = opt.measure_in_backward()
    opt.options.sums = "exact"
    for param in (p, q):
        param.grad = None
        (param * param.detach()).sum().backward()
    assert hooked.waiting == 0
    opt.step()
    exact.step()
    assert torch.equal(p, q)


def test_an_error_leaves_all_as_it_was():
    p, opt = made(sums="exact", nonfinite="raise")
    opt.step()
    before = [p.detach().clone(), *(x.clone() for x in opt.state[p].values())]
    p.grad[3, 4] = torch.inf
    with pytest.raises(FloatingPointError, match=r"grads\['0'\]\[3, 4\] is inf"):
        opt.step()
    assert all(map(torch.equal, before, [p.detach(), *opt.state[p].values()]))


def test_tensors_of_any_strides_and_sizes():
    """Views, channels_last, empty ones and those of no axes: as contiguous ones."""
    made_of = {
        "transposed": torch.randn(40, 30).T,
        "channels_last": torch.randn(4, 8, 5, 5).to(memory_format=torch.channels_last),
        "strided": torch.randn(60, 40)[::2, 1::3],
        "empty": torch.zeros(0, 7),
        "scalar": torch.tensor(2.0),
    }
    found = []
    for contiguous in (True, False):  # which steps the tensors themselves
        params = {
            name: torch.nn.Parameter(x.clone().contiguous() if contiguous else x)
            for name, x in made_of.items()
        }
        opt = Adafactor(params.items(), sums="exact", masters="float32")
        torch.manual_seed(1)
        for _ in range(2):
            for p in params.values():
                p.grad = torch.randn(p.shape)
            opt.step()
        found.append({name: p.detach().clone() for name, p in params.items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in made_of)
    assert float(opt.state[params["scalar"]]["step"]) == 2


def test_other_tensors_are_refused():
    p = torch.nn.Parameter(torch.ones(3, 2, device="meta"))
    p.grad = torch.ones(3, 2, device="meta")
    with pytest.raises(
        TypeError, match=r"params\[0\] is a Parameter of torch.float32 on meta, must"
    ):
        Adafactor([p], sums="exact").step()
    q = torch.nn.Parameter(torch.ones(3))
    q.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        Adafactor([q], sums="exact").step()
