"""Twenty steps beside torch.optim.Adafactor and transformers' Adafactor themselves."""

import importlib

import pytest
import torch

from adafactor_native.torch import (
    Adafactor,
    BigVisionAdafactor,
    HuggingFaceAdafactor,
    NumpyAdafactor,
    OptaxAdafactor,
)
from torch_adapter.models import SHAPES, assert_close, copies, gradients, parameters, take_step

TOLERANCES = {torch.float64: 1e-12, torch.float32: 3e-6}

TORCH_CASES = {
    "default": {},
    "decay": {"weight_decay": 0.1, "lr": 0.05},
    "maximize": {"maximize": True, "weight_decay": 0.1},
    "beta2_decay": {"beta2_decay": -0.5},
    "d": {"d": 1.5},
    "eps": {"eps": (1e-3, 1e-2)},
    "large lr": {"lr": 10.0},
}
HUGGINGFACE_CASES = {
    "default": {},
    "warm-up": {"warmup_init": True},
    "lr": {"lr": 0.1, "relative_step": False},
    "unscaled": {"lr": 0.1, "relative_step": False, "scale_parameter": False},
    "momentum": {"beta1": 0.9, "weight_decay": 0.1},
    "clip": {"clip_threshold": 0.3, "decay_rate": -0.5, "eps": (1e-8, 1e-2)},
}


def transformers_adafactor():
    return importlib.import_module("transformers.optimization").Adafactor


def run_beside(ours_class, theirs_class, dtype, case):
    ours = parameters(dtype)
    theirs = copies(ours)
    a, b = ours_class(ours, **case), theirs_class(theirs, **case)
    largest = [p.detach().abs().max() for p in ours]  # so far: a single element may cross zero
    for step in range(20):
        absent = {2: (0, 3), 5: range(7), 9: (1,)}.get(step, ())
        take_step(a, ours, step, absent)
        take_step(b, theirs, step, absent)
        largest = [torch.maximum(most, q.detach().abs().max()) for most, q in zip(largest, theirs)]
        for p, q, most in zip(ours, theirs, largest):
            assert (p - q).abs().max() <= TOLERANCES[dtype] * most


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("case", TORCH_CASES)
def test_torch(case, dtype, each_reader):
    run_beside(Adafactor, torch.optim.Adafactor, dtype, TORCH_CASES[case])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("case", HUGGINGFACE_CASES)
def test_huggingface(case, dtype, require_installed):
    require_installed("transformers")
    run_beside(HuggingFaceAdafactor, transformers_adafactor(), dtype, HUGGINGFACE_CASES[case])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("eps", [(None, 1e-3), (1e-7, 1e-3)], ids=str)
def test_half_precision_is_within_an_ulp_of_float64(dtype, eps, each_reader):
    """After each step, of torch's own in float64 from the same parameters and gradients."""
    ours = parameters(dtype)
    opt = Adafactor(ours, eps=eps, weight_decay=0.1)
    exact = copies(ours, torch.float64)
    eps1 = torch.finfo(dtype).eps if eps[0] is None else eps[0]
    reference = torch.optim.Adafactor(exact, eps=(eps1, eps[1]), weight_decay=0.1)
    run_within_an_ulp(opt, reference, ours, exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", HUGGINGFACE_CASES)
def test_half_precision_is_within_an_ulp_of_huggingface_in_float64(case, dtype, require_installed):
    require_installed("transformers")
    ours = parameters(dtype)
    exact = copies(ours, torch.float64)
    options = HUGGINGFACE_CASES[case]
    opt, reference = (
        HuggingFaceAdafactor(ours, **options),
        transformers_adafactor()(exact, **options),
    )
    run_within_an_ulp(opt, reference, ours, exact, cancelled=2.0**-24)


def run_within_an_ulp(opt, reference, ours, exact, cancelled=0.0):
    """Layers are left out at some steps.

    A step that takes a parameter to almost zero is computed in float32 by transformers and by ours, to
    the same number, in which little is left of the float64 one: there `cancelled` times the parameter
    before it may be missing.
    """
    dtype = ours[0].dtype
    off = total = 0
    for step in range(20):
        absent = {2: (0, 3), 9: (1,)}.get(step, ())
        before = [p.detach().double() for p in ours]
        for p, q, grad in zip(ours, exact, gradients(ours, step, absent)):
            q.data.copy_(p.detach())
            p.grad, q.grad = grad, None if grad is None else grad.double()
        opt.step()
        reference.step()
        for p, q, old in zip(ours, exact, before):
            rounded = q.detach().to(dtype)
            bits = (p.detach().view(torch.int16).int() - rounded.view(torch.int16).int()).abs()
            assert ((bits <= 1) | ((p - q).abs() < cancelled * old.abs())).all()
            off += int(bits.sum())
            total += bits.numel()
    assert off <= total / 500


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("foreach", [None, False, True])
def test_mixed_groups(foreach, dtype):
    def groups(params):
        return [
            {"params": params[:2], "lr": 0.1, "weight_decay": 0.01},
            {"params": params[2:3], "eps": [1e-4, 1e-2], "d": 2.0},
            {"params": params[3:]},
        ]

    ours = parameters(dtype)
    theirs = copies(ours)
    a = Adafactor(groups(ours), foreach=foreach)
    b = torch.optim.Adafactor(groups(theirs), foreach=foreach)
    for step in range(20):
        for opt in a, b:
            opt.param_groups[0]["lr"] = 0.1 / (step + 1)
            opt.param_groups[2]["weight_decay"] = 0.01 * step
        take_step(a, ours, step)
        take_step(b, theirs, step)
        assert_close(ours, theirs, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_mixed_groups_of_huggingface(dtype, require_installed):
    require_installed("transformers")

    def groups(params):
        return [
            {"params": params[:2], "lr": 0.1, "relative_step": False, "weight_decay": 0.01},
            {"params": params[2:3], "eps": (1e-8, 1e-2), "clip_threshold": 0.5, "beta1": 0.9},
            {"params": params[3:5], "warmup_init": True},
            {"params": params[5:], "scale_parameter": False, "decay_rate": -0.5},
        ]

    ours = parameters(dtype)
    theirs = copies(ours)
    a, b = HuggingFaceAdafactor(groups(ours)), transformers_adafactor()(groups(theirs))
    for step in range(20):
        for opt in a, b:
            opt.param_groups[0]["lr"] = 0.1 / (step + 1)
        absent = [k for k in range(len(SHAPES)) if (k + step) % 4 == 0]
        take_step(a, ours, step, absent)
        take_step(b, theirs, step, absent)
        assert_close(ours, theirs, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_frozen_layers_change_from_step_to_step(dtype):
    ours = parameters(dtype)
    theirs = copies(ours)
    a, b = Adafactor(ours), torch.optim.Adafactor(theirs)
    for step in range(20):
        absent = [k for k in range(len(SHAPES)) if (k + step) % 3 == 0]
        take_step(a, ours, step, absent)
        take_step(b, theirs, step, absent)
        assert_close(ours, theirs, TOLERANCES[dtype])
    for p, q in zip(ours, theirs):
        assert a.state[p]["step"] == b.state[q]["step"]


NATIVE = {
    "optax": (OptaxAdafactor, {"learning_rate": 0.1, "momentum": 0.9, "weight_decay_rate": 0.01}),
    "big_vision": (BigVisionAdafactor, {"lr": 0.1, "wd": 0.01, "min_dim_size_to_factor": 3}),
    "numpy": (NumpyAdafactor, {"lr": 0.1, "weight_decay": 0.01}),
    "torch": (Adafactor, {"lr": 0.1, "weight_decay": 0.01}),
    "huggingface": (HuggingFaceAdafactor, {"beta1": 0.5, "weight_decay": 0.01}),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("convention", NATIVE)
def test_bits_of_the_optimizer_of_numpy(convention, dtype):
    """The same convention through adafactor_native.Optimizer, which its own tests compare."""
    from adafactor_native import Optimizer

    made, case = NATIVE[convention]
    ours = parameters(dtype)
    arrays = [p.detach().clone().numpy() for p in ours]
    opt = made(ours, **case)
    theirs = Optimizer(arrays, convention, nonfinite="propagate", **case)
    for step in range(6):
        grads = gradients(ours, step, absent=(1,) if step < 3 else ())
        for p, grad in zip(ours, grads):
            p.grad = grad
        opt.step()
        theirs.step([None if grad is None else grad.numpy() for grad in grads])
        for p, array in zip(ours, arrays):
            assert torch.equal(p.detach(), torch.from_numpy(array))


@pytest.mark.parametrize("convention", NATIVE)
def test_bits_of_float32_state(convention):
    from adafactor_native import Optimizer

    made, case = NATIVE[convention]
    ours = parameters(torch.float32)
    arrays = [p.detach().clone().numpy() for p in ours]
    opt = made(ours, state_dtype="float32", **case)
    theirs = Optimizer(arrays, convention, nonfinite="propagate", state_dtype="float32", **case)
    for step in range(4):
        take_step(opt, ours, step)
        theirs.step([p.grad.numpy() for p in ours])
        for p, array in zip(ours, arrays):
            assert torch.equal(p.detach(), torch.from_numpy(array))
    means = [v for p in ours for v in opt.state[p].values() if torch.is_tensor(v) and v.dim()]
    assert {value.dtype for value in means} == {torch.float32}


def test_schedules_of_optax_get_its_count():
    seen = []
    p = torch.ones(4, requires_grad=True)
    opt = OptaxAdafactor([p], learning_rate=lambda count: seen.append(count) or 0.1)
    for _ in range(3):
        p.grad = torch.ones(4)
        opt.step()
    assert seen == [0, 1, 2]
