"""What torch's own tests of optimizers do not see, and real trainings do."""

import copy
import gc
import importlib.util
import pickle
import weakref

import numpy as np
import pytest
import torch

from adafactor_native.torch import (
    Adafactor,
    BigVisionAdafactor,
    HuggingFaceAdafactor,
    NumpyAdafactor,
    OptaxAdafactor,
)
from torch_adapter.models import (
    SHAPES,
    assert_close,
    assert_same_bits,
    copies,
    digest,
    gradients,
    parameters,
    take_step,
)

pytestmark = pytest.mark.usefixtures("each_reader")


def stepped(*shape, dtype=torch.float32, **options):
    """Return an optimizer and its only parameter after a step."""
    p = torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype))
    p.grad = torch.ones_like(p)
    opt = Adafactor([p], **options)
    opt.step()
    return opt, p


def test_a_storage_can_be_resized_after_a_step():
    _, p = stepped(8, 4)
    for tensor in p.data, p.grad:
        tensor.untyped_storage().resize_(0)
        tensor.untyped_storage().resize_(8 * 4 * 4)


def test_memory_of_replaced_params_and_grads_is_released():
    array = np.ones((8, 4), np.float32)
    p = torch.nn.Parameter(torch.from_numpy(array))
    opt = Adafactor([p])
    p.grad = torch.ones(8, 4)
    opt.step()
    param, grad = weakref.ref(array), weakref.ref(p.grad)
    state = weakref.ref(opt.state[p]["row_var"])
    p.data = torch.ones(8, 4)
    p.grad = None
    opt.state.clear()
    del array
    gc.collect()
    assert param() is None and grad() is None and state() is None


def test_a_dropped_optimizer_and_its_params_are_released():
    opt, p = stepped(3, 2)
    dead = weakref.ref(opt), weakref.ref(p)
    del opt, p
    gc.collect()
    assert dead[0]() is None and dead[1]() is None


def test_backward_after_a_step_is_refused():
    p = torch.nn.Parameter(torch.randn(3, 2))
    opt = Adafactor([p])
    loss = (p * p).sum()
    loss.backward(retain_graph=True)
    version = p._version
    opt.step()
    assert p._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_load_casts_nothing(require_split):
    """uint16, float32 and float64 beside a bfloat16 parameter; strings and arrays of other people."""
    require_split({"masters": "split"})
    p = torch.nn.Parameter(torch.randn(4, 3).bfloat16())
    opt = Adafactor([p], masters="split")
    p.grad = torch.randn_like(p)
    opt.step()
    saved = copy.deepcopy(opt.state_dict())
    mine = saved["state"][0]
    mine["low"].view(torch.int16).fill_(257)
    mine["row_var"].fill_(1 / 3)
    mine["note"], mine["array"] = "text", np.arange(3)
    mine["other"] = torch.tensor(1 / 3, dtype=torch.float64)
    opt.load_state_dict(saved)
    loaded = opt.state[p]
    assert loaded["low"].dtype == torch.uint16 and (loaded["low"].int() == 257).all()
    assert loaded["row_var"].dtype == torch.float64 and (loaded["row_var"] == 1 / 3).all()
    assert loaded["note"] == "text" and np.array_equal(loaded["array"], np.arange(3))
    assert loaded["other"].dtype == torch.float64 and loaded["other"] == mine["other"]


def test_a_load_rounds_no_master():
    p = torch.nn.Parameter(torch.randn(4, 3).bfloat16())
    opt = Adafactor([p], masters="float32")
    p.grad = torch.randn_like(p)
    opt.step()
    saved = opt.state_dict()
    saved = copy.deepcopy(saved)
    opt.load_state_dict(saved)
    master = opt.state[p]["master"]
    assert torch.equal(master, saved["state"][0]["master"]) and master.dtype == torch.float32
    assert not torch.equal(master, master.bfloat16().float())


def test_a_loaded_state_shares_nothing_with_its_source():
    opt, p = stepped(3, 2)
    saved = opt.state_dict()
    kept = copy.deepcopy(saved)
    q = torch.nn.Parameter(p.detach().clone())
    other = Adafactor([q])
    other.load_state_dict(saved)
    q.grad = torch.ones_like(q)
    other.step()
    assert other.state[q]["step"] == 2 and opt.state[p]["step"] == 1
    for key, value in kept["state"][0].items():
        assert torch.equal(value, saved["state"][0][key])


def test_two_params_whose_states_share_a_step_are_stepped_one_after_another():
    ps, qs = parameters(torch.float64), None
    opt = Adafactor(ps)
    take_step(opt, ps, 0)
    qs = copies(ps)
    reference = torch.optim.Adafactor(qs)
    reference.load_state_dict(copy.deepcopy(opt.state_dict()))
    for one, params in ((opt, ps), (reference, qs)):
        shared = one.state[params[0]]["step"]
        for p in params:
            one.state[p]["step"] = shared
        take_step(one, params, 1)
        assert one.state[params[0]]["step"] == 1 + len(params)
    assert_close(ps, qs, 1e-12)


def test_unknown_group_keys_are_kept_and_ignored():
    p, q = parameters(shapes={"a": (4, 3), "b": (4, 3)}, seed=1)
    plain = Adafactor([{"params": [p]}], lr=0.1)
    extra = {"initial_lr": 0.1, "lr_scale": 2.0, "fused": True, "param_names": ["w"]}
    with torch.no_grad():
        q.copy_(p)
    other = Adafactor([{"params": [q], **extra}], lr=0.1)
    for step in range(3):
        for param in p, q:
            param.grad = gradients([p], step)[0]
        plain.step()
        other.step()
    assert torch.equal(p, q)
    assert {key: other.param_groups[0][key] for key in extra} == extra
    assert set(plain.param_groups[0]) == {
        "params",
        "lr",
        "beta2_decay",
        "eps",
        "d",
        "weight_decay",
        "foreach",
        "maximize",
    }  # torch's, and no other
    other.load_state_dict(other.state_dict())
    other.step()


def test_a_load_adds_no_group_keys():
    """torch's own class has none, and a flattened checkpoint of it would lack them."""
    opt, _ = stepped(4, 3)
    keys = set(opt.param_groups[0])
    for source in opt, torch.optim.Adafactor([torch.nn.Parameter(torch.ones(4, 3))]):
        opt.load_state_dict(copy.deepcopy(source.state_dict()))
        assert set(opt.param_groups[0]) == keys
    assert set(pickle.loads(pickle.dumps(opt)).param_groups[0]) == keys


def test_versions_go_up_one_by_one_in_older_torch(monkeypatch):
    from adafactor_native.torch import reading

    monkeypatch.setattr(reading, "_versions_go_up_together", lambda: False)
    opt, p = stepped(4, 3)
    version = p._version
    opt.step()
    assert p._version > version


@pytest.mark.parametrize("flatten", [False, True])
def test_distributed_checkpoints_in_both_directions(flatten):
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(flatten_optimizer_state_dict=flatten)

    def make(optimizer):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        return model, optimizer(model.parameters(), lr=0.1)

    def train(model, opt, steps):
        for step in steps:
            opt.zero_grad()
            x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
            model(x).square().sum().backward()
            opt.step()

    for first, second in (
        (Adafactor, Adafactor),
        (torch.optim.Adafactor, Adafactor),
        (Adafactor, torch.optim.Adafactor),
    ):
        model, opt = make(first)
        train(model, opt, range(3))
        saved = copy.deepcopy(get_optimizer_state_dict(model, opt, options=options))
        resumed, other = make(second)
        resumed.load_state_dict(model.state_dict())
        set_optimizer_state_dict(resumed, other, saved, options=options)
        train(model, opt, range(3, 6))
        train(resumed, other, range(3, 6))
        if first is second:
            assert_same_bits(resumed.parameters(), model.parameters())
        assert_close(resumed.parameters(), model.parameters(), 3e-6)
        steps = {float(other.state[p]["step"]) for p in resumed.parameters()}
        assert steps == {6.0}


CHECKPOINTED = {
    "huggingface": (HuggingFaceAdafactor, torch.float32, {}),
    "huggingface, momentum": (
        HuggingFaceAdafactor,
        torch.bfloat16,
        {"beta1": 0.9, "lr": 0.1, "relative_step": False},
    ),
    "optax": (OptaxAdafactor, torch.float32, {"learning_rate": 0.1, "momentum": 0.9}),
    "big_vision": (BigVisionAdafactor, torch.float32, {"lr": 0.1, "min_dim_size_to_factor": 3}),
    "numpy": (NumpyAdafactor, torch.float64, {"lr": 0.1}),
    "masters": (Adafactor, torch.bfloat16, {"masters": "float32"}),
    "split": (Adafactor, torch.bfloat16, {"masters": "split"}),
    "stochastic": (Adafactor, torch.bfloat16, {"rounding": "stochastic"}),
}


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("case", CHECKPOINTED)
def test_distributed_checkpoints_of_every_class(case, flatten, require_split):
    """To the bit; asked for before the first step, they leave no step counted."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    made, dtype, options = CHECKPOINTED[case]
    require_split(options)
    how = StateDictOptions(flatten_optimizer_state_dict=flatten)

    def make():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)).to(dtype)
        return model, made(model.parameters(), **options)

    model, opt = make()
    get_optimizer_state_dict(model, opt, options=how)
    assert {int(opt.state[p]["step"]) for p in model.parameters()} == {0}
    for step in range(3):
        take_step(opt, list(model.parameters()), step)
    saved = copy.deepcopy(get_optimizer_state_dict(model, opt, options=how))
    resumed, other = make()
    resumed.load_state_dict(model.state_dict())
    set_optimizer_state_dict(resumed, other, saved, options=how)
    for step in range(3, 6):
        take_step(opt, list(model.parameters()), step)
        take_step(other, list(resumed.parameters()), step)
        assert_same_bits(digest(other), digest(opt))


def test_the_first_step_of_a_checkpoint_makes_the_state_and_counts_nothing():
    params = parameters()
    before = copies(params)
    opt = Adafactor(params, lr=0.0)
    for p in params:
        p.grad = torch.zeros_like(p)
    opt.step()
    assert all(opt.state[p]["step"] == 0 for p in params)
    assert all(len(opt.state[p]) in (2, 3) for p in params)
    assert_same_bits(params, before)
    opt.param_groups[0]["lr"] = 0.1
    take_step(opt, params, 0)
    assert all(opt.state[p]["step"] == 1 for p in params)


def test_a_warm_up_from_lr_zero_counts():
    """Of LoRA: the gradient of one factor is zero, because the other is, whose gradient is not."""
    a, b = parameters(shapes={"a": (3, 4), "b": (4, 3)})
    opt = Adafactor([a, b], lr=0.0)
    a.grad, b.grad = torch.zeros_like(a), torch.ones_like(b)
    opt.step()
    assert opt.state[a]["step"] == opt.state[b]["step"] == 1
    opt.zero_grad()
    a.grad, b.grad = torch.zeros_like(a), torch.zeros_like(b)
    opt.step()  # the state exists
    assert opt.state[a]["step"] == 2


@pytest.mark.parametrize("way", ["step", "step_async", "step_param", "step_parameter", "fused"])
def test_a_warm_up_from_lr_zero_counts_however_it_is_stepped(way):
    """The parameter whose gradient is zero comes first, where each is stepped for itself."""
    a, b = parameters(shapes={"a": (3, 4), "b": (4, 3)})
    opt = Adafactor([a, b], lr=0.0)
    (group,) = opt.param_groups
    if way == "fused":
        opt.fuse_backward()
        (a * 0).sum().backward()
        b.sum().backward()
    else:
        a.grad, b.grad = torch.zeros_like(a), torch.ones_like(b)
    if way == "step":
        opt.step()
    elif way == "step_async":
        opt.step_async().wait()
    elif way == "step_param":
        opt.step_param(a, group)
        opt.step_param(b, group)
    elif way == "step_parameter":
        opt.step_parameter(a, group, 0)
        opt.step_parameter(b, group, 1)
    assert opt.state[a]["step"] == opt.state[b]["step"] == 1


def test_the_first_step_of_a_checkpoint_counts_nothing_of_subclasses():
    """Which torch's own function would step, and count."""

    class Mine(torch.Tensor):
        pass

    for others in [], parameters(shapes={"b": (4, 3)}):
        p = torch.nn.Parameter(torch.ones(4, 3).as_subclass(Mine))
        opt = Adafactor([p, *others], lr=0.0)
        for param in p, *others:
            param.grad = torch.zeros(4, 3)
        opt.step()
        for param in p, *others:
            assert set(opt.state[param]) == {"step", "row_var", "col_var"}
            assert opt.state[param]["step"] == 0
        opt.step()  # the state exists
        assert opt.state[p]["step"] == 1


def test_options_survive_deepcopy_and_pickle():
    p = torch.nn.Parameter(torch.randn(4, 3).bfloat16())
    opt = Adafactor([p], rounding="stochastic", seed=7, nonfinite="raise", num_threads=1)
    for made in copy.deepcopy(opt), pickle.loads(pickle.dumps(opt)):
        assert repr(made.options) == repr(opt.options)
        q = made.param_groups[0]["params"][0]
        q.grad = torch.full_like(q, float("nan"))
        with pytest.raises(FloatingPointError):
            made.step()
    opt.load_state_dict(torch.optim.Adafactor([p]).state_dict())
    assert opt.options.seed == 7 and opt.options.rounding == "stochastic"


def test_no_state_before_the_first_step_and_placeholders_are_swapped():
    p = torch.nn.Parameter(torch.empty(4, 3, device="meta"))
    opt = Adafactor([p])
    assert len(opt.state) == 0
    real = torch.nn.Parameter(torch.ones(4, 3))
    opt.param_groups[0]["params"] = [real]
    real.grad = torch.ones(4, 3)
    opt.step()
    assert list(opt.state) == [real]


def test_it_can_be_referred_to_weakly_and_change_its_class():
    opt, p = stepped(3, 2)
    assert weakref.ref(opt)() is opt
    opt.__class__ = type("Wrapped", (type(opt),), {})
    opt.extra = 1
    p.grad = torch.ones_like(p)
    opt.step()
    assert opt.state[p]["step"] == 2 and not hasattr(Adafactor, "__slots__")


@pytest.mark.parametrize("how", ["state", "state[p]", "state[p][k]", "in place", "clear"])
def test_a_replaced_state_is_the_one_that_steps(how):
    def edited(opt, p):
        values = {
            "step": torch.tensor(5.0),
            "row_var": torch.full((4, 1), 0.5, dtype=torch.float64),
            "col_var": torch.full((1, 3), 0.25, dtype=torch.float64),
        }
        if how == "state":
            opt.state = type(opt.state)(dict, {p: values})
        elif how == "state[p]":
            opt.state[p] = values
        elif how == "state[p][k]":
            for key, value in values.items():
                opt.state[p][key] = value
        elif how == "in place":
            for key, value in values.items():
                opt.state[p][key].copy_(value)
        else:
            opt.state.clear()

    p, q = (
        torch.nn.Parameter(torch.ones(4, 3).double()),
        torch.nn.Parameter(torch.ones(4, 3).double()),
    )
    ours, theirs = Adafactor([p]), torch.optim.Adafactor([q])
    for _ in range(3):
        for opt, param in ((ours, p), (theirs, q)):
            param.grad = torch.arange(12.0).double().reshape(4, 3) - 5
            opt.step()
            edited(opt, param)
            opt.step()
        assert torch.allclose(p, q, rtol=0, atol=1e-12)
        assert ours.state[p]["step"] == theirs.state[q]["step"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_of_another_dtype_or_layout_is_taken_over(dtype):
    opt, p = stepped(4, 3)
    row = opt.state[p]["row_var"].to(dtype)
    opt.state[p]["row_var"] = row
    opt.state[p]["col_var"] = opt.state[p]["col_var"].repeat(2, 1)[::2]
    p.grad = torch.ones_like(p)
    opt.step()
    assert opt.state[p]["row_var"].dtype == torch.float64 and opt.state[p]["step"] == 2


def test_params_and_state_that_are_swapped_in_are_used(skip_for_old_torch):
    """torch.optim._stateless, as torch.func-like trainings do it."""
    if importlib.util.find_spec("torch.optim._stateless") is None:
        skip_for_old_torch("this torch has no torch.optim._stateless")
    from torch.optim import _stateless as stateless

    opt, p = stepped(4, 3)
    other = torch.nn.Parameter(torch.zeros(4, 3))
    other.grad = torch.ones(4, 3)
    fresh = copy.deepcopy(opt.state_dict())
    before = p.detach().clone()
    with stateless.swap_in_optimizer_params_and_state(opt, {"w": other}, fresh):
        opt.step()
    assert torch.equal(p, before) and not torch.equal(other, torch.zeros(4, 3))
    assert opt.state[p]["step"] == 1


def test_p_data_set_to_other_memory():
    opt, p = stepped(4, 3)
    other = torch.ones(4, 3)
    p.data = other
    opt.step()
    assert not torch.equal(other, torch.ones(4, 3)) and torch.equal(p, other)


@pytest.mark.parametrize("change", ["half", "double", "bfloat16"])
def test_a_model_that_changes_its_dtype(change):
    model = torch.nn.Linear(4, 3)
    opt = Adafactor(model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    opt.step()
    getattr(model, change)()
    before = copies(model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    opt.step()
    for p, q in zip(model.parameters(), before):
        assert p.dtype == q.dtype and not torch.equal(p, q)
        assert opt.state[p]["step"] == 2


def test_swapped_tensors():
    opt, p = stepped(4, 3)
    other = torch.nn.Parameter(torch.zeros(4, 3))
    other.grad = torch.ones(4, 3)
    torch.utils.swap_tensors(p, other)
    opt.step()
    assert opt.state[p]["step"] == 2 and not torch.equal(p, torch.zeros(4, 3))


def test_meta_then_materialised():
    model = torch.nn.Linear(4, 3, device="meta")
    opt = Adafactor(model.parameters())
    model.to_empty(device="cpu")
    opt = Adafactor(model.parameters()) if opt.param_groups[0]["params"][0].is_meta else opt
    for p in model.parameters():
        torch.nn.init.ones_(p)
        p.grad = torch.ones_like(p)
    opt.step()
    assert all(opt.state[p]["step"] == 1 for p in model.parameters())


def test_meta_then_materialised_in_place():
    """As torch.__future__ has it, which swaps tensors: the optimizer's parameters stay what they are."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model = torch.nn.Linear(4, 3, device="meta")
        opt = Adafactor(model.parameters())
        model.to_empty(device="cpu")
        assert opt.param_groups[0]["params"][0] is model.weight
        for p in model.parameters():
            torch.nn.init.ones_(p)
        for dtype in torch.float32, torch.float16, torch.bfloat16, torch.float64:
            model.to(dtype)
            before = copies(model.parameters())
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            opt.step()
            for p, q in zip(model.parameters(), before):
                assert p.dtype == dtype and not torch.equal(p, q)
        assert {float(opt.state[p]["step"]) for p in model.parameters()} == {4.0}
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_a_module_that_is_emptied_has_other_memory():
    model = torch.nn.Linear(4, 3)
    opt = Adafactor(model.parameters())
    for count in 1, 2:
        model.to_empty(device="cpu")
        for p in model.parameters():
            torch.nn.init.ones_(p)
            p.grad = torch.ones_like(p)
        opt.step()
        for p in model.parameters():
            assert opt.state[p]["step"] == count and (p < 1).all()


def test_meta_params_are_torchs_affair():
    p = torch.nn.Parameter(torch.empty(4, 3, device="meta"))
    p.grad = torch.empty(4, 3, device="meta")
    for opt in Adafactor([p]), torch.optim.Adafactor([p]):
        with pytest.raises(RuntimeError, match="cannot be called on meta tensors"):
            opt.step()


@pytest.mark.parametrize(
    "lr",
    [torch.tensor(0.05), torch.tensor([0.05]), np.float32(0.05), np.float64(0.05), np.array(0.05)],
    ids=lambda lr: f"{type(lr).__name__}{tuple(lr.shape)}",
)
def test_lr_and_eps_of_any_kind(lr):
    """eps as a list, lr as a tensor or a NumPy scalar, set between steps as well."""
    p, q = (torch.nn.Parameter(torch.ones(4, 3)) for _ in range(2))
    a = Adafactor([p], lr=lr, eps=[1e-6, 1e-3])
    b = Adafactor([q], lr=float(lr), eps=(1e-6, 1e-3))
    for step in range(4):
        for opt, param in ((a, p), (b, q)):
            param.grad = gradients([p], step)[0]
            opt.step()
        a.param_groups[0]["lr"] *= 0.5
        b.param_groups[0]["lr"] = float(a.param_groups[0]["lr"])
        a.param_groups[0]["eps"][1] = b.param_groups[0]["eps"][1] * 2  # the same list
        b.param_groups[0]["eps"] = (1e-6, b.param_groups[0]["eps"][1] * 2)
        assert torch.equal(p, q)


def test_lr_that_is_a_tensor_and_changes_in_place():
    lr = torch.tensor(0.05)
    p, q = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    a, b = Adafactor([p], lr=lr), Adafactor([q], lr=0.05)
    for factor in 1.0, 0.1:
        a.param_groups[0]["lr"].fill_(0.05 * factor)
        b.param_groups[0]["lr"] = float(lr)
        for opt, param in ((a, p), (b, q)):
            param.grad = torch.ones(4)
            opt.step()
    assert torch.equal(p, q)


def test_gradients_whose_negation_is_still_to_be_done():
    z = torch.complex(torch.randn(4, 3), torch.randn(4, 3))
    grad = z.conj().imag
    assert grad.is_neg()
    p, q = (torch.nn.Parameter(torch.ones(4, 3)) for _ in range(2))
    p.grad, q.grad = grad, grad.resolve_neg()
    for param in p, q:
        Adafactor([param], lr=0.1).step()
    assert torch.equal(p, q)


def test_params_that_are_negations_to_be_done():
    z = torch.complex(torch.randn(4, 3), torch.randn(4, 3))
    p = z.conj().imag.requires_grad_()
    q = p.detach().resolve_neg().clone().requires_grad_()
    for param in p, q:
        param.grad = torch.ones(4, 3)
        Adafactor([param], lr=0.1).step()
    assert torch.allclose(p.resolve_neg(), q)


def test_params_that_share_memory_are_stepped_one_after_another():
    """Whole, in part, and in part of a third."""

    def make(optimizer):
        memory = torch.linspace(-1, 1, 24).double()
        ps = [torch.nn.Parameter(torch.empty(0).double()) for _ in range(4)]
        for p, view in zip(
            ps, (memory[:12].view(4, 3), memory[:12].view(3, 4), memory[6:], memory[:2])
        ):
            p.data = view
        return memory, ps, optimizer(ps, lr=0.1)

    ours, theirs = make(Adafactor), make(torch.optim.Adafactor)
    for step in range(4):
        for _, ps, opt in ours, theirs:
            take_step(opt, ps, step)
        assert torch.allclose(ours[0], theirs[0], rtol=0, atol=1e-12)


def test_shared_memory_is_refused_where_a_step_is_all_or_nothing():
    p, q = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    q.data = p.data
    opt = Adafactor([p, q], nonfinite="raise")
    p.grad, q.grad = torch.ones(4), torch.ones(4)
    with pytest.raises(ValueError, match=r"params\[1\] shares memory with a parameter before it"):
        opt.step()
    assert torch.equal(p, torch.ones(4))


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_the_same_param_twice_in_a_group_steps_twice():
    p, q = (torch.nn.Parameter(torch.ones(4, 3).double()) for _ in range(2))
    for param, optimizer in ((p, Adafactor), (q, torch.optim.Adafactor)):
        param.grad = torch.arange(12.0).double().view(4, 3) / 10
        opt = optimizer([param, param])
        opt.step()
        assert opt.state[param]["step"] == 2
    assert torch.allclose(p, q, rtol=0, atol=1e-12)


def test_gradients_in_the_memory_of_params():
    """torch reads what it has written; a step here reads the gradient first."""
    memory = torch.linspace(-1, 1, 12)
    p = torch.nn.Parameter(memory.view(4, 3))
    q = torch.nn.Parameter(memory.clone().view(4, 3))
    p.grad, q.grad = memory.view(4, 3), memory.clone().view(4, 3)
    Adafactor([p], lr=0.1).step()
    Adafactor([q], lr=0.1).step()
    assert torch.equal(p, q)


def test_mixed_dtypes_in_a_group_have_each_its_own_eps():
    """torch's class takes that of the first tensor that it comes to for the others as well."""
    dtypes = torch.bfloat16, torch.float32, torch.float64
    ps = [torch.nn.Parameter(torch.ones(4, 3).to(d)) for d in dtypes]
    qs = copies(ps)
    for p, q in zip(ps, qs):
        p.grad, q.grad = torch.full_like(p, 1e-4), torch.full_like(q, 1e-4)
    Adafactor(ps, lr=0.5).step()
    for p, q in zip(ps, qs):
        torch.optim.Adafactor([q], lr=0.5).step()
        assert torch.allclose(p, q, rtol=0, atol=3e-6)
    theirs = copies(qs)
    for q in theirs:
        q.grad = torch.full_like(q, 1e-4)
    torch.optim.Adafactor(theirs, lr=0.5).step()
    assert not torch.allclose(theirs[1], ps[1], rtol=0, atol=1e-3)


def test_frozen_layers_that_change_keep_their_own_counts():
    params = parameters()
    opt = Adafactor(params)
    for step in range(9):
        take_step(opt, params, step, absent=[k for k in range(len(SHAPES)) if k % 3 == step % 3])
    assert {float(opt.state[p]["step"]) for p in params} == {6.0}


def test_closure_with_backward():
    p = torch.nn.Parameter(torch.ones(4, 3))
    opt = Adafactor([p], lr=0.1)

    def closure():
        assert torch.is_grad_enabled()
        opt.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert opt.step(closure) == 12
    assert not torch.equal(p, torch.ones(4, 3))
    assert opt.step(closure=None) is None


def test_tensors_without_elements_are_stepped_over():
    p, q = torch.nn.Parameter(torch.ones(0, 3)), torch.nn.Parameter(torch.ones(4))
    opt = Adafactor([p, q])
    p.grad, q.grad = torch.ones(0, 3), torch.ones(4)
    opt.step()
    assert opt.state[p]["step"] == opt.state[q]["step"] == 1
    assert not torch.equal(q, torch.ones(4))


def test_channels_last_and_views():
    """Of the same numbers the same steps, to rounding, and no element beside them touched."""
    base = torch.randn(4, 3, 5, 5).double()
    grads = [torch.randn(4, 3, 5, 5).double() for _ in range(3)]
    room = torch.full((4, 3, 5, 10), 7.0).double()
    layouts = {
        "contiguous": base.clone(),
        "channels_last": base.clone().to(memory_format=torch.channels_last),
        "every other": room[..., ::2].copy_(base),
        "transposed": base.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    }
    done = {}
    for name, tensor in layouts.items():
        p = torch.nn.Parameter(tensor)
        opt = Adafactor([p], lr=0.1)
        for grad in grads:
            p.grad = grad.clone(memory_format=torch.preserve_format)
            opt.step()
        assert p.stride() == tensor.stride() and p.data_ptr() == tensor.data_ptr()
        done[name] = p.detach()
    for tensor in done.values():
        assert torch.allclose(tensor, done["contiguous"], rtol=0, atol=1e-12)
    assert (room[..., 1::2] == 7).all()


def test_gradients_that_are_not_contiguous_or_expanded():
    p, q = (torch.nn.Parameter(torch.ones(4, 3).double()) for _ in range(2))
    for grad in torch.arange(12.0).double().view(3, 4).t(), torch.tensor(0.5).double().expand(4, 3):
        p.grad, q.grad = grad, grad.contiguous()
        for param in p, q:
            Adafactor([param], lr=0.1).step()
        assert torch.allclose(p, q, rtol=0, atol=1e-15)


def test_expanded_params_are_refused_as_torch_does():
    p = torch.ones(1, 3).expand(4, 3).requires_grad_()
    p.grad = torch.ones(4, 3)
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        Adafactor([p]).step()


def test_a_gradient_of_another_dtype_than_its_param(skip_for_old_torch):
    p = torch.nn.Parameter(torch.ones(4, 3).bfloat16())
    if not hasattr(p, "grad_dtype"):
        skip_for_old_torch("this torch has gradients of the parameter's dtype only")
    p.grad_dtype = None
    p.grad = torch.full((4, 3), 1 / 3)
    q = torch.nn.Parameter(torch.ones(4, 3).double())
    q.grad = p.grad.double()
    opt = Adafactor([p], lr=0.1)
    opt.step()
    Adafactor([q], lr=0.1, eps=(2**-7, 1e-3)).step()
    assert torch.equal(p, q.bfloat16())


def test_subclasses_and_complex_and_sparse():
    class Mine(torch.Tensor):
        pass

    p = torch.nn.Parameter(torch.ones(4, 3).as_subclass(Mine))
    q = torch.nn.Parameter(torch.ones(4, 3))
    for param, optimizer in ((p, Adafactor), (q, torch.optim.Adafactor)):
        param.grad = torch.ones(4, 3)
        opt = optimizer([param], lr=0.1)
        opt.step()
        opt.step()
    assert torch.equal(p.as_subclass(torch.Tensor), q)
    sparse = torch.nn.Parameter(torch.ones(4, 3))
    sparse.grad = torch.eye(4, 3).to_sparse()
    with pytest.raises(RuntimeError, match="Adafactor does not support sparse gradients"):
        Adafactor([sparse]).step()
    with pytest.raises(RuntimeError, match="Adafactor does not support sparse gradients"):
        HuggingFaceAdafactor([sparse]).step()
    with pytest.raises(TypeError, match="must be a plain tensor in this machine's memory"):
        HuggingFaceAdafactor([p]).step()


def test_state_moves_between_plain_and_other_tensors():
    """A subclass for a while, whose state is torch's, then plain again."""
    opt, p = stepped(4, 3)
    opt.state[p]["row_var"] = opt.state[p]["row_var"].float()
    opt.step()
    assert opt.state[p]["row_var"].dtype == torch.float64


@pytest.mark.parametrize("first", [Adafactor, torch.optim.Adafactor])
@pytest.mark.parametrize("foreach", [None, True])
def test_states_of_torch_and_ours_load_each_other(first, foreach):
    second = torch.optim.Adafactor if first is Adafactor else Adafactor
    ps = parameters()
    a = first(ps, foreach=foreach, lr=0.1, weight_decay=0.01)
    for step in range(4):
        take_step(a, ps, step)
    qs = copies(ps)
    b = second(qs)
    b.load_state_dict(copy.deepcopy(a.state_dict()))  # torch's own shares step with what it loads
    for step in range(4, 8):
        take_step(a, ps, step)
        take_step(b, qs, step)
    assert_close(ps, qs, 3e-6)
    assert b.param_groups[0]["weight_decay"] == 0.01


def test_state_dicts_are_tensors_and_numbers(tmp_path):
    opt, p = stepped(4, 3, masters="float32", dtype=torch.bfloat16)
    before = digest(opt)
    torch.save(opt.state_dict(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    other = Adafactor([torch.nn.Parameter(p.detach().clone())], masters="float32")
    other.load_state_dict(loaded)
    assert_same_bits(digest(other), before)


def test_state_shares_memory_with_the_step():
    opt, p = stepped(4, 3)
    row = opt.state[p]["row_var"]
    before = row.clone()
    p.grad = torch.full_like(p, 9)
    opt.step()
    assert opt.state[p]["row_var"] is row and not torch.equal(row, before)


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda s: s.pop("row_var"), ValueError, "must have .'row_var'. as well"),
        (
            lambda s: s.update(row_var=torch.ones(3, 1)),
            ValueError,
            r"'row_var' of params\[0\] has shape",
        ),
        (lambda s: s.update(col_var=[1.0]), TypeError, "is a list, must be a tensor"),
        (lambda s: s.update(step=torch.tensor(-1.0)), ValueError, "must be an int >= 0"),
        (lambda s: s.update(step=torch.tensor(float("nan"))), ValueError, "must be an int >= 0"),
        (lambda s: s.update(step="x"), TypeError, "must be a count of steps"),
        (lambda s: s.update(master=torch.ones(4, 3)), ValueError, "masters='float32'"),
        (
            lambda s: s.update(col_var=s["row_var"].view(-1)[:3].view(1, 3)),
            ValueError,
            "share memory",
        ),
    ],
)
def test_states_that_no_step_can_use_are_refused_and_nothing_changes(edit, error, message):
    opt, p = stepped(4, 3, dtype=torch.bfloat16)
    edit(opt.state[p])
    before = p.detach().clone()
    kept = {key: copy.deepcopy(value) for key, value in opt.state[p].items()}
    if "master" in kept:
        opt.state[p]["row_var"] = opt.state[p]["row_var"].float()  # so that it is looked at
        kept["row_var"] = kept["row_var"].float()
    with pytest.raises(error, match=message):
        opt.step()
    assert torch.equal(p, before)
    for key, value in kept.items():
        assert repr(opt.state[p][key]) == repr(value), key  # a nan is one, too


def test_a_load_that_does_not_fit_changes_nothing():
    opt, _ = stepped(4, 3)
    saved = copy.deepcopy(opt.state_dict())
    before = digest(opt)
    bad = copy.deepcopy(saved)
    bad["state"][0]["row_var"] = torch.ones(7, 1)
    with pytest.raises(
        ValueError, match=r"'row_var' of params\[0\] has shape \(7, 1\), must be \(4, 1\)"
    ):
        opt.load_state_dict(bad)
    with pytest.raises(ValueError, match=r"must have .'step', 'row_var', 'col_var'. as well"):
        opt.load_state_dict({**saved, "state": {0: {"exp_avg": torch.ones(4, 3)}}})
    with pytest.raises(ValueError, match="different number of parameter groups"):
        opt.load_state_dict({**saved, "param_groups": []})
    assert_same_bits(digest(opt), before)


def test_tensors_without_elements_come_and_go():
    """They write nothing, so that lists of different lengths look alike by what they write."""
    empty = [torch.nn.Parameter(torch.zeros(0)) for _ in range(3)]
    opt = HuggingFaceAdafactor(empty)
    for n in (1, 3, 2, 1, 3):
        for k, p in enumerate(empty):
            p.grad = torch.zeros_like(p) if k < n else None
        opt.step()
    assert [opt.state[p]["step"] for p in empty] == [5, 3, 2]
