"""The cases that torch tests its own Adafactor by: inputs and error inputs of the installed wheel."""

import copy
import pickle

import pytest
import torch
from torch.testing._internal.common_optimizers import (
    OptimizerErrorEnum,
    optim_error_inputs_func_adafactor,
    optim_inputs_func_adafactor,
)

from adafactor_native.torch import Adafactor

INPUTS = optim_inputs_func_adafactor(device="cpu")


@pytest.fixture(params=INPUTS, ids=lambda case: case.desc)
def kwargs(request):
    return request.param.kwargs


def test_there_are_cases():
    assert len(INPUTS) >= 5


ERRORS = optim_error_inputs_func_adafactor("cpu", torch.float32)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
@pytest.mark.parametrize("case", ERRORS, ids=lambda case: case.optimizer_error_input.desc)
def test_error_inputs(case):
    params, kwargs = case.optimizer_error_input.params, case.optimizer_error_input.kwargs
    if case.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR:
        if issubclass(case.error_type, Warning):
            with pytest.warns(case.error_type, match=case.error_regex):
                Adafactor(params, **kwargs)
        else:
            with pytest.raises(case.error_type, match=case.error_regex):
                Adafactor(params, **kwargs)
    else:
        opt = Adafactor(params, **kwargs)
        with pytest.raises(case.error_type, match=case.error_regex):
            opt.step()


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("with_lrsched", [True, False])
def test_forloop_goes_right_direction(kwargs, contiguous, with_lrsched):
    weight = torch.nn.Parameter(torch.randn((10, 5)))
    bias = torch.nn.Parameter(torch.randn(10))
    x = torch.randn(5)
    if not contiguous:
        weight = torch.nn.Parameter(torch.randn((10, 5, 2))[..., 0])
        bias = torch.nn.Parameter(torch.randn((10, 2))[..., 0])
    opt = Adafactor([weight, bias], **kwargs)
    sched = torch.optim.lr_scheduler.StepLR(opt, gamma=0.99, step_size=1)

    def closure():
        opt.zero_grad()
        loss = (weight.mv(x) + bias).pow(2).sum()
        loss.backward()
        return loss

    first = closure().item()
    for _ in range(20):
        loss = opt.step(closure)
        assert isinstance(loss, torch.Tensor)
        if with_lrsched:
            sched.step()
    last = closure().item()
    assert last > first if kwargs.get("maximize") else last < first


@pytest.mark.parametrize("is_tensor", [False, True])
def test_lr_as_a_tensor(kwargs, is_tensor):
    """The same steps with lr as a float and as a tensor, schedulers among them."""
    rest = {key: value for key, value in kwargs.items() if key != "lr"}

    def run(lr):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(4, 3))
        opt = Adafactor([p], lr=lr, **rest)
        sched = torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)
        for _ in range(5):
            p.grad = torch.randn(4, 3)
            opt.step()
            sched.step()
        return p.detach()

    lr = 0.02
    assert torch.equal(run(torch.tensor(lr, dtype=torch.float64) if is_tensor else lr), run(lr))


def test_param_groups_lr_and_decay():
    """A group whose values stand still does not move, others do."""
    weight = torch.nn.Parameter(torch.randn(10, 5))
    bias = torch.nn.Parameter(torch.randn(10))
    before = weight.detach().clone(), bias.detach().clone()
    opt = Adafactor([{"params": [weight], "lr": 0.0}, {"params": [bias]}], lr=0.1)
    for p in weight, bias:
        p.grad = torch.ones_like(p)
    opt.step()
    assert torch.equal(weight, before[0]) and not torch.equal(bias, before[1])


def test_state_dict_deterministic(kwargs):
    """The same steps go on from a loaded state as in the run that saved it."""
    torch.manual_seed(1)
    weight, bias = (torch.nn.Parameter(torch.randn(s)) for s in ((2, 3), (2,)))
    x = torch.randn(3)
    opt = Adafactor([weight, bias], **kwargs)

    def steps(optimizer, w, b, n):
        for _ in range(n):
            optimizer.zero_grad()
            (w.mv(x) + b).pow(2).sum().backward()
            optimizer.step()

    steps(opt, weight, bias, 10)
    w, b = (torch.nn.Parameter(p.detach().clone()) for p in (weight, bias))
    other = Adafactor([w, b], **kwargs)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    steps(opt, weight, bias, 10)
    steps(other, w, b, 10)
    assert torch.equal(weight, w) and torch.equal(bias, b)
    before = opt.state_dict()
    opt.load_state_dict(before)
    assert opt.state_dict().keys() == before.keys()


def test_load_an_older_state_dict(kwargs):
    """Without the keys that were not there yet, and with step as a number."""
    p = torch.nn.Parameter(torch.randn(3, 2))
    p.grad = torch.randn(3, 2)
    opt = Adafactor([p], **kwargs)
    opt.step()
    older = copy.deepcopy(opt.state_dict())
    older["state"][0]["step"] = float(older["state"][0]["step"])
    for group in older["param_groups"]:
        del group["foreach"], group["maximize"]
    opt.load_state_dict(older)
    opt.step()
    assert opt.state[p]["step"] == 2
    assert opt.param_groups[0]["maximize"] is kwargs.get("maximize", False)


def test_pickle_and_deepcopy_of_state_and_class(kwargs):
    p = torch.nn.Parameter(torch.randn(3, 2))
    opt = Adafactor([p], **kwargs)
    p.grad = torch.randn(3, 2)
    opt.step()
    for made in pickle.loads(pickle.dumps(opt)), copy.deepcopy(opt):
        q = made.param_groups[0]["params"][0]
        q.grad = p.grad.clone()
        made.step()
        assert made.state[q]["step"] == 2


def test_hooks_run_once_and_in_order():
    p = torch.nn.Parameter(torch.ones(2))
    torch.optim.Adafactor([torch.nn.Parameter(torch.ones(1))])  # which patches its own class
    opt = Adafactor([p])
    calls = []
    opt.register_step_pre_hook(lambda *_: calls.append("step"))
    opt.register_step_post_hook(lambda *_: calls.append("stepped"))
    opt.register_state_dict_pre_hook(lambda *_: calls.append("save"))
    opt.register_state_dict_post_hook(lambda *_: calls.append("saved"))
    opt.register_load_state_dict_pre_hook(lambda *_: calls.append("load"))
    opt.register_load_state_dict_post_hook(lambda *_: calls.append("loaded"))
    p.grad = torch.ones(2)
    opt.step()
    opt.load_state_dict(opt.state_dict())
    assert calls == ["step", "stepped", "save", "saved", "load", "loaded"]


def test_a_load_hook_sees_and_changes_what_is_loaded():
    """A pre-hook's dict is loaded; a post-hook finds the state as a step will."""
    p = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    opt = Adafactor([p])
    p.grad = torch.ones_like(p)
    opt.step()
    saved = copy.deepcopy(opt.state_dict())

    def change(_, given):
        given = copy.deepcopy(given)
        given["state"][0]["variance"] += 1 / 3
        return given

    opt.register_load_state_dict_pre_hook(change)
    seen = []
    opt.register_load_state_dict_post_hook(lambda o: seen.append(o.state[p]["variance"].clone()))
    opt.load_state_dict(saved)
    assert torch.equal(seen[0], saved["state"][0]["variance"] + 1 / 3)


def test_step_is_a_plain_method_that_an_instance_may_hide():
    p = torch.nn.Parameter(torch.ones(2))
    opt = Adafactor([p])
    calls = []
    opt.step = lambda closure=None: calls.append(closure)
    opt.step()
    assert calls == [None]
    del opt.step
    opt.step(None)
