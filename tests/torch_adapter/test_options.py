"""What our classes take beside their libraries' arguments, and what they refuse."""

import pytest
import torch

import adafactor_native as an
from adafactor_native import SkippedStepWarning
from adafactor_native.torch import Adafactor, HuggingFaceAdafactor, NumpyAdafactor
from adafactor_native.torch import options as own_options
from torch_adapter.models import assert_same_bits, copies, digest, gradients, parameters, take_step


def with_a_nan(params, step, position=2):
    grads = gradients(params, step)
    grads[position].view(-1)[-1] = float("nan")
    return grads


@pytest.mark.parametrize("nonfinite", ["raise", "skip", "propagate"])
def test_nonfinite(nonfinite):
    params = parameters()
    opt = Adafactor(params, nonfinite=nonfinite)
    take_step(opt, params, 0)
    before = digest(opt)
    for p, grad in zip(params, with_a_nan(params, 1)):
        p.grad = grad
    if nonfinite == "raise":
        with pytest.raises(
            FloatingPointError,
            match=r"grads\[2\]\[16\] is nan, must be finite; nothing was changed",
        ):
            opt.step()
        assert_same_bits(digest(opt), before)
    elif nonfinite == "skip":
        with pytest.warns(SkippedStepWarning):
            opt.step()
        assert_same_bits(digest(opt), before)
        assert opt.skipped == 1
    else:
        opt.step()
        assert params[2].isnan().any() and not params[1].isnan().any()
    opt.options.nonfinite = "raise"
    if nonfinite != "propagate":
        take_step(opt, params, 2)
        assert all(opt.state[p]["step"] == 2 for p in params)


@pytest.mark.parametrize("way", ["step", "closure", "scheduled", "fused"])
def test_a_warning_names_the_line_that_asked_for_the_step(way):
    p = torch.nn.Parameter(torch.ones(3))
    opt = Adafactor([p], nonfinite="skip")
    if way == "fused":
        opt.fuse_backward()
    if way == "scheduled":  # which wraps opt.step once more
        torch.optim.lr_scheduler.ConstantLR(opt)

    def closure():
        (p * float("nan")).sum().backward()

    def take():
        if way != "closure":
            closure()
        opt.step(closure if way == "closure" else None)

    with pytest.warns(SkippedStepWarning) as caught:
        take()
    assert [one.filename for one in caught] == [__file__]


def test_a_state_of_hugging_faces_without_rms_gets_one():
    params = [torch.nn.Parameter(torch.full((4, 3), 0.5)) for _ in range(2)]
    opt = HuggingFaceAdafactor(params)
    for step in range(2):
        for p in params:
            p.grad = torch.ones(4, 3)
        opt.step()
        if step == 0:
            del opt.state[params[0]]["RMS"]
    assert torch.equal(*params)
    assert opt.state[params[0]]["RMS"] == opt.state[params[1]]["RMS"] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_nans_that_a_fault_leaves_have_the_same_bits(dtype):
    """As they have in NumPy's arrays: tests/test_nan_bits.py."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    params = [torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in ((5, 4), (7,))]
    opt = Adafactor(params, nonfinite="propagate")
    for p in params:
        p.grad = torch.ones_like(p)
        p.grad.view(-1)[1] = float("-inf")
        p.grad.view(-1)[2] = -torch.tensor(float("nan"))
    opt.step()
    for p in params:
        state = [x for x in opt.state[p].values() if torch.is_tensor(x) and x.dim()]
        for x in (p.detach(), *state):
            kind = integer if x.dtype == dtype else torch.int64
            one = torch.full((1,), float("nan"), dtype=x.dtype).view(kind)
            assert x.isnan().any()
            assert (x[x.isnan()].view(kind) == one).all()


@pytest.mark.usefixtures("needs_names")
def test_an_error_names_the_parameter_by_its_name():
    p = torch.nn.Parameter(torch.ones(4).bfloat16())
    opt = Adafactor([("encoder.bias", p)], nonfinite="raise")
    p.grad = torch.tensor([0.0, float("inf"), 0.0, 0.0]).bfloat16()
    with pytest.raises(FloatingPointError, match=r"grads\['encoder.bias'\]\[1\] is inf"):
        opt.step()


def test_a_gradient_of_another_shape_is_refused():
    p = torch.nn.Parameter(torch.ones(4, 3))
    opt = Adafactor([p])
    p.grad = torch.ones(4, 3)
    opt.step()
    p.data = torch.ones(4, 2)
    with pytest.raises(ValueError, match=r"grads\[0\] has shape \(4, 3\), must be \(4, 2\)"):
        opt.step()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_max_grad_norm_is_that_of_torch(dtype):
    ours = parameters(dtype)
    theirs = copies(ours)
    a, b = Adafactor(ours, max_grad_norm=0.5), Adafactor(theirs)
    for step in range(4):
        for p, q, grad in zip(ours, theirs, gradients(ours, step)):
            p.grad, q.grad = grad, grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(theirs, 0.5)
        a.step()
        b.step()
        assert a.grad_norm == pytest.approx(float(norm), rel=1e-6)
        for p, q in zip(ours, theirs):
            assert torch.allclose(p, q, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-6)


def test_a_grad_scale_and_found_inf_that_a_scaler_sets():
    ours, theirs = parameters(), parameters()
    a, b = Adafactor(ours), Adafactor(theirs)
    for p, q, grad in zip(ours, theirs, gradients(ours, 0)):
        p.grad, q.grad = grad * 1024, grad
    a.grad_scale, a.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
    a.step()
    b.step()
    assert_same_bits(ours, theirs)
    a.found_inf = torch.tensor(1.0)
    before = digest(a)
    a.step()
    assert_same_bits(digest(a), before)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_bits_do_not_depend_on_threads(threads):
    params, others = (parameters(shapes={"m": (600, 500), "n": (300, 400)}) for _ in range(2))
    a, b = Adafactor(params, num_threads=threads), Adafactor(others)
    for step in range(2):
        take_step(a, params, step)
        take_step(b, others, step)
    assert_same_bits(params, others)


def test_num_threads_is_both_limits():
    p = torch.nn.Parameter(torch.ones(4))
    opt = Adafactor([p])
    before = torch.get_num_threads(), an.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert opt._num_threads() == 1
        torch.set_num_threads(2)
        an.set_num_threads(1)
        assert opt._num_threads() == 1
        an.set_num_threads(3)
        assert opt._num_threads() == 2
        opt.options.num_threads = 5
        assert opt._num_threads() == 5
    finally:
        torch.set_num_threads(before[0])
        an.set_num_threads(before[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nonfinite": "ignore"}, "nonfinite is 'ignore', must be 'raise', 'skip' or 'propagate'"),
        ({"rounding": "up"}, "rounding is 'up', must be 'nearest' or 'stochastic'"),
        ({"masters": "double"}, "masters is 'double', must be None, 'float32' or 'split'"),
        (
            {"state_dtype": torch.bfloat16},
            "state_dtype is torch.bfloat16, must be torch.float64 or torch.float32",
        ),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1.0, must be a number > 0 or None"),
        ({"rounding": "stochastic", "masters": "split"}, "must be 'nearest' with masters 'split'"),
    ],
)
def test_options_are_checked(options, message, require_split):
    require_split(options)
    p = torch.nn.Parameter(torch.ones(4))
    with pytest.raises(ValueError, match=message):
        Adafactor([p], **options)
    opt = HuggingFaceAdafactor([p])
    before = repr(opt.options)
    *fine, (name, wrong) = options.items()
    for other, value in fine:
        setattr(opt.options, other, value)
        before = repr(opt.options)
    with pytest.raises(ValueError, match=message):
        setattr(opt.options, name, wrong)
    assert repr(opt.options) == before


def test_lower_halves_are_refused_where_torch_cannot_save_them(monkeypatch):
    monkeypatch.setattr(own_options, "saves_uint16", lambda: False)
    (p,) = parameters(torch.bfloat16, {"a": (4, 3)})
    with pytest.raises(
        ValueError, match="masters is 'split', must be None or 'float32' with torch"
    ):
        Adafactor([p], masters="split")
    with pytest.raises(
        ValueError, match="masters is 'split', must be None or 'float32' with torch"
    ):
        Adafactor([{"params": [p], "masters": "split"}])
    opt = Adafactor([p])
    with pytest.raises(ValueError, match="which cannot save the lower halves"):
        opt.options.masters = "split"
    assert opt.options.masters is None


def test_unknown_options_are_refused():
    p = torch.nn.Parameter(torch.ones(4))
    with pytest.raises(TypeError, match="'nonfinit' is no option, did you mean 'nonfinite'"):
        NumpyAdafactor([p], nonfinit="raise")
    with pytest.raises(AttributeError, match="'nonfinit' is no option, did you mean 'nonfinite'"):
        NumpyAdafactor([p]).options.nonfinit = "raise"


def test_a_group_has_rounding_and_masters_of_its_own():
    p, q = (torch.nn.Parameter(torch.ones(32, 32).bfloat16()) for _ in range(2))
    opt = Adafactor(
        [{"params": [p], "masters": "float32"}, {"params": [q], "rounding": "stochastic"}]
    )
    p.grad = q.grad = torch.ones(32, 32).bfloat16()
    opt.step()
    assert "master" in opt.state[p] and "master" not in opt.state[q]
    assert len(q.unique()) == 2 and len(p.unique()) == 1


@pytest.mark.parametrize(
    "name", ["nonfinite", "num_threads", "state_dtype", "max_grad_norm", "seed"]
)
def test_what_holds_for_all_groups_is_refused_in_one(name):
    p, q = parameters(shapes={"a": (4, 3), "b": (4, 3)})
    with pytest.raises(ValueError, match=f"{name} is 'raise' in a group, must be an argument"):
        Adafactor([{"params": [p], name: "raise"}])
    opt = Adafactor([p])
    with pytest.raises(ValueError, match=f"{name} is 1 in a group, must be an argument"):
        opt.add_param_group({"params": [q], name: 1})
    assert len(opt.param_groups) == 1


def test_hugging_faces_errors_and_schedule():
    p = torch.nn.Parameter(torch.ones(4, 3))
    with pytest.raises(ValueError, match="Cannot combine manual `lr` and `relative_step=True`"):
        HuggingFaceAdafactor([p], lr=0.1)
    with pytest.raises(ValueError, match="`warmup_init=True` requires `relative_step=True`"):
        HuggingFaceAdafactor([p], lr=0.1, relative_step=False, warmup_init=True)
    opt = HuggingFaceAdafactor([p], relative_step=False)  # the error comes with the step, as there
    p.grad = torch.ones(4, 3)
    with pytest.raises(ValueError, match="lr is None, must be a number"):
        opt.step()


def test_adafactor_schedule(require_installed):
    require_installed("transformers")
    import importlib

    theirs = importlib.import_module("transformers.optimization")
    from adafactor_native.torch import AdafactorSchedule

    runs = []
    for made, schedule in (
        (HuggingFaceAdafactor, AdafactorSchedule),
        (HuggingFaceAdafactor, theirs.AdafactorSchedule),
        (theirs.Adafactor, theirs.AdafactorSchedule),
    ):
        p = torch.nn.Parameter(torch.ones(4, 3).double())
        opt = made([p])
        shown = schedule(opt, initial_lr=0.5)
        seen = [shown.get_lr()[0]]
        for step in range(4):
            p.grad = gradients([p], step)[0]
            opt.step()
            shown.step()
            seen.append(float(shown.get_lr()[0]))
        runs.append((seen, p.detach().clone()))
    for seen, p in runs[1:]:
        assert seen == pytest.approx(runs[0][0], rel=1e-6)
        assert torch.allclose(p, runs[0][1], rtol=0, atol=1e-12)


def test_others_are_refused_where_a_step_is_all_or_nothing():
    class Mine(torch.Tensor):
        pass

    p = torch.nn.Parameter(torch.ones(4, 3).as_subclass(Mine))
    p.grad = torch.ones(4, 3)
    for options in {"nonfinite": "raise"}, {"max_grad_norm": 1.0}:
        with pytest.raises(ValueError, match="which torch's own function steps"):
            Adafactor([p], **options).step()
    with pytest.raises(ValueError, match="masters must be None and rounding 'nearest'"):
        Adafactor([p], masters="float32").step()


def test_step_param_and_step_parameter_take_the_steps_of_step():
    ours, theirs = parameters(torch.bfloat16), parameters(torch.bfloat16)

    def groups(params):
        return [{"params": params[:3], "lr": 0.1}, {"params": params[3:], "weight_decay": 0.1}]

    a, b = (Adafactor(groups(ps), rounding="stochastic") for ps in (ours, theirs))
    for step in range(3):
        for p, grad in zip(ours, gradients(ours, step)):
            p.grad = grad
        for group in reversed(a.param_groups):
            for i, p in reversed(list(enumerate(group["params"]))):
                if step % 2:
                    a.step_param(p, group)
                else:
                    a.step_parameter(p, group, i)
        take_step(b, theirs, step)
        assert_same_bits(ours, theirs)
    with pytest.raises(ValueError, match="p is none of group"):
        a.step_param(theirs[0], a.param_groups[0])
    with pytest.raises(ValueError, match="group is none of param_groups"):
        a.step_param(ours[0], {"params": ours})
    a.options.max_grad_norm = 1.0
    with pytest.raises(ValueError, match="max_grad_norm is set"):
        a.step_param(ours[0], a.param_groups[0])


def test_another_thread_in_a_step_is_refused():
    p = torch.nn.Parameter(torch.ones(4))
    opt = Adafactor([p])
    p.grad = torch.ones(4)
    with opt._lock(), pytest.raises(RuntimeError, match="being updated by another thread"):
        opt.step()
    opt.step()


def test_lr_that_is_not_finite_is_refused():
    p = torch.nn.Parameter(torch.ones(4))
    opt = Adafactor([p])
    p.grad = torch.ones(4)
    opt.param_groups[0]["lr"] = float("nan")
    with pytest.raises(ValueError, match="lr is nan, must be finite"):
        opt.step()
