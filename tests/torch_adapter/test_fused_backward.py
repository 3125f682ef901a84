"""Steps inside backward: the bits of plain steps, the memory of one layer, and what is refused."""

import copy
import gc
import weakref

import pytest
import torch

from adafactor_native import SkippedStepWarning
from adafactor_native.torch import (
    Adafactor,
    BigVisionAdafactor,
    HuggingFaceAdafactor,
    OptaxAdafactor,
)
from torch_adapter.models import assert_same_bits, digest

MADE = {
    "torch": (Adafactor, {"lr": 0.05, "weight_decay": 0.01}),
    "huggingface": (HuggingFaceAdafactor, {"beta1": 0.9}),
    "optax": (OptaxAdafactor, {"learning_rate": lambda count: 0.05 / (count + 1)}),
    "big_vision": (BigVisionAdafactor, {"lr": 0.01}),
    "stochastic": (Adafactor, {"rounding": "stochastic"}),
    "masters": (Adafactor, {"masters": "float32"}),
}


def network(dtype=torch.float32):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, 8) for _ in range(4)]
    return torch.nn.Sequential(*layers, torch.nn.Linear(8, 1)).to(dtype)


def loss_of(model, step):
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
    return model(x.to(next(model.parameters()).dtype)).square().mean()


def pair(case):
    made, options = MADE[case]
    dtype = torch.bfloat16 if case in ("stochastic", "masters") else torch.float32
    plain, fused = network(dtype), network(dtype)
    a, b = made(plain.parameters(), **options), made(fused.parameters(), **options)
    return plain, a, fused, b


@pytest.mark.parametrize("case", MADE)
def test_the_bits_of_plain_steps(case):
    plain, a, fused, b = pair(case)
    b.fuse_backward()
    for step in range(6):
        a.zero_grad()
        loss_of(plain, step).backward()
        a.step()
        loss_of(fused, step).backward()
        assert all(p.grad is None for p in fused.parameters())
        b.step()  # finds nothing
        assert_same_bits(digest(a), digest(b))


@pytest.mark.parametrize("case", ["torch", "optax"])
def test_accumulation(case):
    plain, a, fused, b = pair(case)
    b.fuse_backward()
    for step in range(3):
        a.zero_grad()
        for part in range(3):
            (loss_of(plain, 10 * step + part) / 3).backward()
        a.step()
        with b.accumulating():
            for part in range(2):
                (loss_of(fused, 10 * step + part) / 3).backward()
                assert all(p.grad is not None for p in fused.parameters())
        (loss_of(fused, 10 * step + 2) / 3).backward()
        assert_same_bits(digest(a), digest(b))


def test_gradients_of_one_layer_exist_at_a_time():
    _, _, model, opt = pair("torch")
    opt.fuse_backward()
    alive = []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(p.grad is not None for p in model.parameters()))
        )
    loss_of(model, 0).backward()
    assert len(alive) == 10 and max(alive) == 0  # that hook comes after ours, which has freed it


def test_one_t_where_layers_are_left_out():
    """optax's parameters have the model's t, whichever of them a backward reaches."""
    plain, a, fused, b = pair("optax")
    b.fuse_backward()
    for step in range(4):
        for model, opt in ((plain, a), (fused, b)):
            opt.zero_grad()
            x = torch.ones(2, 8)
            (model[0](x) if step % 2 else model(x)).square().sum().backward()
            opt.step()
        assert_same_bits(digest(a), digest(b))
    assert {float(b.state[p]["step"]) for p in fused[0].parameters()} == {4.0}
    assert {float(b.state[p]["step"]) for p in fused[1].parameters()} == {3.0}


@pytest.mark.usefixtures("needs_names")
def test_a_fault_leaves_earlier_parameters_stepped_and_says_which():
    model = network()
    opt = Adafactor(model.named_parameters(), nonfinite="raise")
    opt.fuse_backward()
    loss_of(model, 0).backward()
    before = [p.detach().clone() for p in model.parameters()]

    def poison(_, __, output):
        output.register_hook(lambda grad: grad * float("nan"))

    with model[1].register_forward_hook(poison):
        loss = loss_of(model, 1)
    with pytest.raises(FloatingPointError) as caught:
        loss.backward()
    message = str(caught.value)
    assert "grads['1." in message and "is nan, must be finite; it was not changed" in message
    assert "6 parameters had been stepped in this backward and stay so" in message
    assert "'4.weight'" in message and "..." in message
    changed = [not torch.equal(p, q) for p, q in zip(model.parameters(), before)]
    assert changed == [False] * 4 + [True] * 6
    for p, was_stepped in zip(model.parameters(), changed):
        assert opt.state[p]["step"] == (2 if was_stepped else 1)
        assert (p.grad is None) or not was_stepped


def test_skip_leaves_out_the_parameter_at_fault():
    ps = [torch.nn.Parameter(torch.ones(4)) for _ in range(2)]
    opt = Adafactor(ps, nonfinite="skip")
    opt.fuse_backward()
    with pytest.warns(SkippedStepWarning):
        (ps[0].sum() + (ps[1] * float("inf")).sum()).backward()
    assert opt.state[ps[0]]["step"] == 1 and opt.state[ps[1]]["step"] == 0
    assert ps[1].grad is None


def test_what_is_refused():
    _, _, model, opt = pair("torch")
    opt.options.max_grad_norm = 1.0
    with pytest.raises(ValueError, match=r"max_grad_norm is 1\.0, must be None with fuse_backward"):
        opt.fuse_backward()
    opt.options.max_grad_norm = None
    opt.fuse_backward()
    before = digest(opt)
    opt.options.max_grad_norm = 1.0  # later
    with pytest.raises(ValueError, match=r"max_grad_norm is 1\.0, must be None with fuse_backward"):
        loss_of(model, 0).backward()
    assert_same_bits(digest(opt), before)
    opt.options.max_grad_norm = None
    opt.grad_scale = torch.tensor(2.0)
    with pytest.raises(ValueError, match="grad_scale is set, must be None with fuse_backward"):
        loss_of(model, 0).backward()
    assert_same_bits(digest(opt), before)
    opt.grad_scale = None
    opt.zero_grad()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(model, 0)).backward()
    with pytest.raises(AssertionError, match="No inf checks were recorded"):
        scaler.step(opt)


def test_remove_and_groups_that_are_added():
    plain, a, fused, b = pair("torch")
    extra = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    handle = b.fuse_backward()
    assert b.fuse_backward() is handle  # which watches none twice
    for opt, p in ((a, extra[0]), (b, extra[1])):
        opt.add_param_group({"params": [p], "lr": 0.2})
    for step in range(4):
        if step == 2:
            handle.remove()
        for model, opt, p in ((plain, a, extra[0]), (fused, b, extra[1])):
            opt.zero_grad()
            (loss_of(model, step) + p.square().sum()).backward()
            if opt is b:
                assert (p.grad is None) == (step < 2)
            if opt is a or step >= 2:
                opt.step()
        assert_same_bits(digest(a), digest(b))


def test_a_parameter_that_left_the_groups_is_let_alone():
    p = torch.nn.Parameter(torch.ones(3))
    opt = Adafactor([p])
    opt.fuse_backward()
    opt.param_groups[0]["params"] = [torch.nn.Parameter(torch.ones(3))]
    p.square().sum().backward()
    assert torch.equal(p.grad, torch.full((3,), 2.0))


def test_nothing_is_kept_alive_and_copies_are_plain():
    p = torch.nn.Parameter(torch.ones(3))
    opt = Adafactor([p])
    opt.fuse_backward()
    p.square().sum().backward()
    other = copy.deepcopy(opt)
    q = other.param_groups[0]["params"][0]
    q.square().sum().backward()
    assert q.grad is not None
    dead = weakref.ref(opt)
    del opt
    gc.collect()
    assert dead() is None
    p.square().sum().backward()
    assert p.grad is not None
