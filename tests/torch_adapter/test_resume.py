"""A run that is saved and resumed at every step of ten has the bits of one that is never stopped."""

import copy
import io

import pytest
import torch

from adafactor_native.torch import (
    Adafactor,
    BigVisionAdafactor,
    HuggingFaceAdafactor,
    OptaxAdafactor,
)
from torch_adapter.models import assert_same_bits, copies, digest, parameters, take_step

CASES = {
    "float64": (Adafactor, torch.float64, {}),
    "float32": (Adafactor, torch.float32, {"weight_decay": 0.01}),
    "bfloat16": (Adafactor, torch.bfloat16, {}),
    "bfloat16, stochastic": (Adafactor, torch.bfloat16, {"rounding": "stochastic", "seed": 3}),
    "float16, stochastic": (Adafactor, torch.float16, {"rounding": "stochastic"}),
    "bfloat16, masters": (Adafactor, torch.bfloat16, {"masters": "float32"}),
    "float16, masters": (Adafactor, torch.float16, {"masters": "float32"}),
    "bfloat16, split": (Adafactor, torch.bfloat16, {"masters": "split"}),
    "float32 state": (Adafactor, torch.float32, {"state_dtype": "float32"}),
    "float32 state of bfloat16": (Adafactor, torch.bfloat16, {"state_dtype": torch.float32}),
    "huggingface": (HuggingFaceAdafactor, torch.bfloat16, {"beta1": 0.9}),
    "huggingface, momentum in bfloat16": (
        HuggingFaceAdafactor,
        torch.bfloat16,
        {"beta1": 0.9, "momentum_dtype": "bfloat16", "rounding": "stochastic"},
    ),
    "optax": (OptaxAdafactor, torch.float32, {"learning_rate": 0.1, "momentum": 0.9}),
    "big_vision": (BigVisionAdafactor, torch.bfloat16, {"lr": 0.1, "min_dim_size_to_factor": 3}),
}


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("case", CASES)
def test_save_and_resume_at_every_step(case, require_split):
    made, dtype, options = CASES[case]
    require_split(options)
    straight = parameters(dtype)
    stopped = copies(straight)
    a, b = made(straight, **options), made(stopped, **options)
    for step in range(10):
        take_step(a, straight, step, absent=(step % 7,))
        take_step(b, stopped, step, absent=(step % 7,))
        assert_same_bits(digest(a), digest(b))
        saved = through_a_file(b.state_dict())
        stopped = copies(stopped)
        b = made(stopped, **options)
        b.load_state_dict(saved)
        assert_same_bits(digest(a), digest(b))


@pytest.mark.usefixtures("needs_names")
@pytest.mark.parametrize("how", [copy.deepcopy, through_a_file], ids=["deepcopy", "file"])
def test_names_key_the_random_bits(how):
    """A model whose parameters come in another order resumes to the bit where they have names."""
    params = parameters(torch.bfloat16)
    names = [f"layer.{k}" for k in range(len(params))]
    other = copies(params)
    order = list(reversed(range(len(params))))
    a = Adafactor(list(zip(names, params)), rounding="stochastic")
    b = Adafactor([(names[k], other[k]) for k in order], rounding="stochastic")
    for step in range(4):
        take_step(a, params, step)
        take_step(b, other, step)
    assert_same_bits(params, other)
    unnamed = copies(params)
    c = Adafactor([unnamed[k] for k in order], rounding="stochastic")
    take_step(a, params, 4)
    take_step(c, unnamed, 4)
    assert any(not torch.equal(p, q) for p, q in zip(params, unnamed))
    a.load_state_dict(how(a.state_dict()))


def test_two_params_have_different_random_bits():
    p, q = (torch.nn.Parameter(torch.ones(64, 64).bfloat16()) for _ in range(2))
    opt = Adafactor([p, q], rounding="stochastic", lr=1e-3)
    p.grad = q.grad = torch.ones(64, 64).bfloat16()
    opt.step()
    assert not torch.equal(p, q)


def test_stochastic_rounding_has_the_right_mean():
    p = torch.nn.Parameter(torch.ones(256, 256).bfloat16())
    q = torch.nn.Parameter(torch.ones(256, 256).double())
    a = Adafactor([p], rounding="stochastic", lr=1e-3, eps=(1e-7, 1e-3))
    b = Adafactor([q], lr=1e-3, eps=(1e-7, 1e-3))
    for _ in range(10):
        p.grad, q.grad = torch.ones(256, 256).bfloat16(), torch.ones(256, 256).double()
        a.step()
        b.step()
    assert abs(p.double().mean() - q.mean()) < 1e-4 < 1 - q.mean()
    nearest = torch.nn.Parameter(torch.ones(256, 256).bfloat16())
    opt = Adafactor([nearest], lr=1e-3, eps=(1e-7, 1e-3))
    for _ in range(10):
        nearest.grad = torch.ones(256, 256).bfloat16()
        opt.step()
    assert (nearest == 1).all()  # every step is lost


@pytest.mark.parametrize("masters", ["float32", "split"])
def test_masters_keep_every_step(masters, require_split):
    require_split({"masters": masters})
    p = torch.nn.Parameter(torch.ones(64, 32).bfloat16())
    q = torch.nn.Parameter(torch.ones(64, 32))
    a = Adafactor([p], lr=1e-3, masters=masters)
    b = Adafactor([q], lr=1e-3)
    for _ in range(10):
        p.grad, q.grad = torch.ones(64, 32).bfloat16(), torch.ones(64, 32)
        a.step()
        b.step()
    rounded = q.detach().bfloat16()
    bits = (p.detach().view(torch.int16).int() - rounded.view(torch.int16).int()).abs()
    assert bits.max() <= (0 if masters == "float32" else 1)
    if masters == "float32":
        assert torch.equal(a.state[p]["master"], q)


@pytest.mark.parametrize("write", ["copy_", "load_state_dict", "data"])
def test_a_master_follows_weights_that_somebody_writes(write):
    """Loaded before or after the optimizer's state, in whatever order: no weight is reverted."""
    model = torch.nn.Linear(8, 4).bfloat16()
    opt = Adafactor(model.parameters(), masters="float32", lr=0.1)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    opt.step()
    weights = torch.nn.Linear(8, 4).bfloat16().state_dict()
    if write == "copy_":
        with torch.no_grad():
            for p, q in zip(model.parameters(), weights.values()):
                p.copy_(q)
    elif write == "load_state_dict":
        model.load_state_dict(weights)
    else:
        for p, q in zip(model.parameters(), weights.values()):
            p.data = q.clone()
    fresh = torch.nn.Linear(8, 4).bfloat16()
    fresh.load_state_dict(weights)
    other = Adafactor(fresh.parameters(), masters="float32", lr=0.1)
    saved = copy.deepcopy(opt.state_dict())
    for state in saved["state"].values():
        del state["master"]
    other.load_state_dict(saved)
    for params, one in ((model.parameters(), opt), (fresh.parameters(), other)):
        for p in params:
            p.grad = torch.ones_like(p)
        one.step()
    assert_same_bits(model.parameters(), fresh.parameters())


def test_a_master_keeps_what_its_param_does_not_show():
    """Weights that are written with the values they have lose nothing."""
    p = torch.nn.Parameter(torch.randn(8, 4).bfloat16())
    opt = Adafactor([p], masters="float32")
    p.grad = torch.ones_like(p)
    opt.step()
    master = opt.state[p]["master"].clone()
    with torch.no_grad():
        p.copy_(p.clone())
        p[0, 0] = 3.0
    p.grad = None
    opt.params_changed()
    kept = opt.state[p]["master"]
    assert kept[0, 0] == 3 and torch.equal(kept.flatten()[1:], master.flatten()[1:])


def test_params_changed_follows_what_no_version_shows():
    p = torch.nn.Parameter(torch.ones(8, 4).bfloat16())
    opt = Adafactor([p], masters="float32")
    p.grad = torch.ones_like(p)
    opt.step()
    p.data.copy_(torch.full((8, 4), 5.0))  # as .data hides it
    opt.params_changed()
    assert (opt.state[p]["master"] == 5).all()
