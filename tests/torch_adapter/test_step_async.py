"""Steps beside the caller: their bits, their errors, and all that may happen meanwhile."""

import copy
import gc
import os
import pickle

import pytest
import torch

from adafactor_native.torch import Adafactor
from torch_adapter.models import assert_same_bits, digest, gradients, parameters, take_step

SHAPES = {"a": (300, 200), "b": (200,), "c": (64, 64)}


def pair(dtype=torch.float32, **options):
    ours, theirs = (parameters(dtype, SHAPES) for _ in range(2))
    return ours, Adafactor(ours, **options), theirs, Adafactor(theirs, **options)


def give(params, step):
    for p, grad in zip(params, gradients(params, step)):
        p.grad = grad


def poisoned(**options):
    """Return an optimizer whose next step fails."""
    ours, a, _, _ = pair(nonfinite="raise", **options)
    take_step(a, ours, 0)
    give(ours, 1)
    ours[1].grad[3] = float("nan")
    return ours, a


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {}),
        (torch.bfloat16, {"masters": "float32"}),
        (torch.bfloat16, {"rounding": "stochastic"}),
    ],
)
def test_the_bits_of_step(dtype, options):
    ours, a, theirs, b = pair(dtype, **options)
    for step in range(5):
        give(ours, step)
        handle = a.step_async()
        a.zero_grad()  # the step has its gradients
        a.param_groups[0]["lr"] = 0.1 / (step + 1)  # counts from the next step on
        handle.wait()
        assert handle.done()
        take_step(b, theirs, step)
        b.param_groups[0]["lr"] = 0.1 / (step + 1)
        assert_same_bits(digest(a), digest(b))


def test_gradients_are_set_to_zero_when_no_step_reads_them():
    ours, a, theirs, b = pair()
    for step in range(6):
        grads = gradients(ours, step)
        for p, q, grad in zip(ours, theirs, grads):
            p.grad, q.grad = grad, grad.clone()
        a.step_async()
        a.zero_grad(set_to_none=False)
        assert "_pending" not in a.__dict__ and not any(grad.any() for grad in grads)
        b.step()
        assert_same_bits(digest(a), digest(b))


def test_a_step_that_only_makes_the_state_is_not_counted():
    """As `step` has it: every lr and every gradient are zero, and there is no state."""
    ours, a, theirs, b = pair(lr=0.0)
    for p in (*ours, *theirs):
        p.grad = torch.zeros_like(p)
    a.step_async().wait()
    b.step()
    assert [float(a.state[p]["step"]) for p in ours] == [0.0] * len(ours)
    assert_same_bits(digest(a), digest(b))


def test_what_a_step_raises_is_raised_once_by_wait():
    _, a = poisoned()
    before = digest(a)
    handle = a.step_async()
    with pytest.raises(FloatingPointError, match=r"grads\[1\]\[3\] is nan"):
        handle.wait()
    handle.wait()
    a.zero_grad()
    a.step()
    assert_same_bits(digest(a), before)


@pytest.mark.parametrize(
    "need",
    [
        lambda a: a.step(),
        lambda a: a.step_async(),
        lambda a: a.state_dict(),
        lambda a: a.load_state_dict({}),
        copy.deepcopy,
        pickle.dumps,
        lambda a: a.step_param(a.param_groups[0]["params"][0], a.param_groups[0]),
    ],
    ids=["step", "step_async", "state_dict", "load", "copy", "pickle", "step_param"],
)
def test_a_dropped_handles_error_is_raised_by_what_needs_the_optimizer_next(need):
    _, a = poisoned()
    a.step_async()
    with pytest.raises(FloatingPointError, match=r"grads\[1\]\[3\] is nan"):
        need(a)


def test_state_dict_and_a_second_step_wait():
    ours, a, theirs, b = pair()
    for step in range(3):
        give(ours, step)
        a.step_async()
        saved = copy.deepcopy(a.state_dict())
        assert saved["state"][0]["step"] == step + 1
        take_step(b, theirs, step)
    give(ours, 3)
    a.step_async()
    give(ours, 4)
    a.step()
    for step in 3, 4:
        take_step(b, theirs, step)
    assert_same_bits(digest(a), digest(b))


def test_an_error_that_nobody_asked_for_is_written(capsys):
    _, a = poisoned()
    a.step_async()
    a.__dict__.pop("_pending")._join()
    del a
    gc.collect()
    assert (
        "a step_async that nobody waited for has failed: FloatingPointError"
        in capsys.readouterr().err
    )


def test_a_fork_waits_for_the_step():
    ours, a, theirs, b = pair()
    for step in range(2):
        give(ours, step)
        a.step_async()
        take_step(b, theirs, step)
    expected = [p.detach().numpy().tobytes() for p in theirs]
    child = os.fork()
    if child == 0:  # where torch's own threads are gone, and its operators may wait for them
        same = [p.detach().numpy().tobytes() for p in ours] == expected
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    a.state_dict()
    assert_same_bits(digest(a), digest(b))


def test_exit_waits_and_says_what_failed(python):
    script = """
    import torch
    from adafactor_native.torch import Adafactor
    p = torch.nn.Parameter(torch.ones(300, 300))
    opt = Adafactor([p], nonfinite="raise")
    p.grad = torch.ones(300, 300)
    opt.step()
    p.grad[0, 0] = float("nan")
    opt.step_async()
    import sys
    sys.stderr = sys.stdout
    """
    assert "nobody waited for has failed: FloatingPointError" in python(script)


def test_schedulers_count_it():
    ours, a, _, _ = pair()
    schedule = torch.optim.lr_scheduler.StepLR(a, 1, 0.5)
    give(ours, 0)
    a.step_async()
    schedule.step()  # does not warn that no step was taken
    assert a.param_groups[0]["lr"] == 0.005


def test_parameters_elsewhere_are_a_stand_in_away():
    """The recipe of the guide: masters here, copies there, whose gradients arrive and which leave."""
    from torch_adapter.offload import OffloadedAdafactor

    torch.manual_seed(0)
    model = torch.nn.Linear(32, 16).bfloat16()
    plain = copy.deepcopy(model)
    opt = Adafactor(plain.parameters(), masters="float32", lr=0.05)
    offloaded = OffloadedAdafactor(model.parameters(), lr=0.05)
    for step in range(4):
        offloaded.finish()
        for net in model, plain:
            net.zero_grad()
            x = torch.randn(8, 32, generator=torch.Generator().manual_seed(step)).bfloat16()
            net(x).square().mean().backward()
        offloaded.step()
        opt.step()
    offloaded.finish()
    for p, q in zip(model.parameters(), plain.parameters()):
        assert torch.equal(p, q)
