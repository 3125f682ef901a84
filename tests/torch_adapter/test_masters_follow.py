"""A step of torch's tensors that raises, or is left out, leaves what follows written parameters as it was."""

import pytest
import torch

from adafactor_native import SkippedStepWarning
from adafactor_native.torch import Adafactor

STORAGE = {
    "bfloat16, masters": (torch.bfloat16, {"masters": "float32"}),
    "float16, masters": (torch.float16, {"masters": "float32"}),
    "stochastic": (torch.bfloat16, {"masters": "float32", "rounding": "stochastic"}),
    "split": (torch.bfloat16, {"masters": "split"}),
}


def overwritten(case, **options):
    """Return an optimizer whose weights somebody has overwritten, the half of them by zeros."""
    dtype, own = STORAGE[case]
    torch.manual_seed(1)
    params = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in ((6, 4), (5,))]
    options = {"nonfinite": "raise", **own, **options}
    opt = Adafactor(params, lr=1e-2, eps=(1e-7, 1e-3), **options)
    for _ in range(4):
        give(params)
        opt.step()
    with torch.no_grad():
        for p in params:
            p.copy_(torch.randn_like(p))
            p.view(-1)[::2] = 0
    give(params)
    return opt, params


def give(params):
    for p in params:
        p.grad = torch.randn_like(p)


def everything(opt):
    """Return the bits of all that an error must leave as it was."""
    found = []
    for p in (p for group in opt.param_groups for p in group["params"]):
        state = opt.state.get(p, {})
        found += [bits(p), *(bits(torch.as_tensor(state[key])) for key in sorted(state))]
    return found


def bits(tensor):
    return tensor.detach().clone().reshape(-1).view(torch.uint8).tolist()


def step(opt, way):
    if way == "step":
        opt.step()
    elif way == "step_async":
        opt.step_async().wait()
    else:
        opt.step_param(opt.param_groups[0]["params"][1], opt.param_groups[0])


@pytest.mark.parametrize("way", ["step", "step_async", "step_param"])
@pytest.mark.parametrize("case", STORAGE)
def test_masters_follow_nothing_in_a_step_that_raises(case, way):
    opt, params = overwritten(case)
    before = everything(opt)
    good = params[1].grad.clone()
    params[1].grad[2] = torch.nan
    with pytest.raises(FloatingPointError, match=r"grads\[1\]\[2\] is nan, must be finite"):
        step(opt, way)
    assert everything(opt) == before
    params[1].grad = good
    opt.step()
    other, _ = overwritten(case)
    other.step()
    assert everything(opt) == everything(other)


@pytest.mark.parametrize("number", [torch.inf, torch.nan])
@pytest.mark.parametrize("case", STORAGE)
def test_a_parameter_that_is_not_finite_is_named_and_its_master_stays(case, number):
    opt, params = overwritten(case)
    with torch.no_grad():
        params[1][2] = number
    before = everything(opt)
    with pytest.raises(FloatingPointError, match=rf"params\[1\]\[2\] is {number}, must be finite"):
        opt.step()
    assert everything(opt) == before


@pytest.mark.parametrize("case", STORAGE)
def test_masters_follow_nothing_in_a_step_that_is_left_out(case):
    opt, params = overwritten(case, nonfinite="skip")
    before = everything(opt)
    good = params[1].grad.clone()
    params[1].grad[2] = torch.nan
    with pytest.warns(SkippedStepWarning):
        opt.step()
    assert everything(opt) == before
    params[1].grad = good
    opt.step()
    other, _ = overwritten(case, nonfinite="skip")
    other.step()
    assert everything(opt) == everything(other)


@pytest.mark.parametrize("case", STORAGE)
def test_an_error_before_the_step_leaves_masters_as_they_were(case):
    opt, params = overwritten(case)
    before = everything(opt)
    state = opt.state[params[1]]
    variance = state.pop("variance")
    with pytest.raises(ValueError, match=r"must have \['variance'\] as well"):
        opt.step()
    state["variance"] = variance
    assert everything(opt) == before


@pytest.mark.parametrize("case", STORAGE)
def test_a_first_step_that_raises_leaves_no_state(case):
    dtype, options = STORAGE[case]
    p = torch.nn.Parameter(torch.ones(6, 4).to(dtype))
    opt = Adafactor([p], nonfinite="raise", **options)
    p.grad = torch.full_like(p, torch.inf)
    with pytest.raises(FloatingPointError, match=r"grads\[0\]\[0, 0\] is inf"):
        opt.step()
    assert not any(opt.state.values())


def test_a_loaded_state_that_is_converted_for_a_step_that_raises_is_as_it_was():
    p = torch.nn.Parameter(torch.ones(6, 4))
    opt = Adafactor([p], nonfinite="raise")
    p.grad = torch.ones_like(p)
    opt.step()
    loaded = {key: x.half() if key == "row_var" else x for key, x in opt.state[p].items()}
    opt.state[p] = dict(loaded)
    p.grad[1, 1] = torch.nan
    with pytest.raises(FloatingPointError, match="is nan"):
        opt.step()
    assert all(opt.state[p][key] is value for key, value in loaded.items())
