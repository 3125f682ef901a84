"""Gradients measured inside backward: the bits of plain steps, whatever happens before the step."""

import copy
import gc
import io
import pickle
import threading
import weakref

import pytest
import torch

from adafactor_native import SkippedStepWarning
from adafactor_native.torch import (
    Adafactor,
    BigVisionAdafactor,
    HuggingFaceAdafactor,
    NumpyAdafactor,
    OptaxAdafactor,
)
from torch_adapter.models import assert_same_bits, digest

MADE = {
    "torch": (Adafactor, torch.float32, {"lr": 0.05, "weight_decay": 0.01}),
    "uphill": (Adafactor, torch.float32, {"maximize": True}),
    "float64": (Adafactor, torch.float64, {}),
    "float32_state": (Adafactor, torch.float32, {"state_dtype": torch.float32}),
    "huggingface": (HuggingFaceAdafactor, torch.float32, {}),
    "momentum": (HuggingFaceAdafactor, torch.float32, {"beta1": 0.9, "momentum_dtype": "bfloat16"}),
    "optax": (OptaxAdafactor, torch.float32, {"learning_rate": lambda count: 0.05 / (count + 1)}),
    "big_vision": (BigVisionAdafactor, torch.float32, {"lr": 0.01}),
    "numpy": (NumpyAdafactor, torch.float32, {}),
    "bfloat16": (Adafactor, torch.bfloat16, {"eps": (1e-7, 1e-3)}),
    "float16": (Adafactor, torch.float16, {"eps": (1e-7, 1e-3)}),
    "stochastic": (Adafactor, torch.bfloat16, {"rounding": "stochastic"}),
    "masters": (Adafactor, torch.bfloat16, {"masters": "float32"}),
    "split": (Adafactor, torch.bfloat16, {"masters": "split"}),
}
WIDTH = 72
MEASURED = 4  # gradients of the network with 4096 elements or more


def network(dtype=torch.float32):
    """Three matrices of (72, 72), a vector of 5184 and small vectors."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(WIDTH, WIDTH) for _ in range(3)]
    model = torch.nn.Sequential(*layers)
    model.gain = torch.nn.Parameter(torch.ones(WIDTH * WIDTH))
    return model.to(dtype)


def loss_of(model, step, layers=3):
    x = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(step)).to(model.gain.dtype)
    for layer in list(model)[:layers]:
        x = layer(x).tanh()
    return (x @ model.gain.view(WIDTH, WIDTH)).square().mean()


def pair(case, **options):
    """Return a model with its optimizer, twice; the second measures in backward."""
    made, dtype, own = MADE[case]
    plain, measured = network(dtype), network(dtype)
    a = made(plain.parameters(), **own, **options)
    b = made(measured.parameters(), **own, **options)
    return plain, a, measured, b, b.measure_in_backward()


def take_both(plain, a, measured, b, step, change=lambda model, opt: None):
    """Take one step of both, alike; `change` is called between backward and the step."""
    for model, opt in ((plain, a), (measured, b)):
        opt.zero_grad()
        loss_of(model, step).backward()
        change(model, opt)
        opt.step()
    assert_same_bits(digest(a), digest(b))
    assert a.grad_norm == b.grad_norm


@pytest.mark.parametrize("norm", [None, 1e-4, 1e6], ids=["unclipped", "clipped", "below_the_norm"])
@pytest.mark.parametrize("case", MADE)
def test_the_bits_of_plain_steps(case, norm, require_split):
    require_split(MADE[case][2])
    *both, handle = pair(case, max_grad_norm=norm)
    for step in range(5):
        take_both(*both, step)
        assert handle.taken == (MEASURED if step else 0)  # there is no state before the first
        assert handle.waiting == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_with_each_reader_and_thread_count(each_reader, threads):
    *both, handle = pair("torch", num_threads=threads)
    for step in range(3):
        take_both(*both, step)
    assert handle.taken == MEASURED


def test_nothing_is_written_and_no_gradient_goes_before_the_step():
    _, _, model, opt, handle = pair("masters")
    loss_of(model, 0).backward()
    opt.step()
    opt.zero_grad()
    before = digest(opt)
    loss_of(model, 1).backward()
    assert handle.waiting == MEASURED and handle.n_bytes > 0
    assert all(p.grad is not None for p in model.parameters())
    assert_same_bits(before, digest(opt))


@pytest.mark.parametrize("norm", [None, 1.0])
@pytest.mark.parametrize("policy", ["raise", "skip", "propagate"])
def test_what_is_not_finite(policy, norm):
    plain, a, measured, b, handle = pair("torch", nonfinite=policy, max_grad_norm=norm)
    take_both(plain, a, measured, b, 0)
    errors = []
    for model, opt in ((plain, a), (measured, b)):
        opt.zero_grad()
        hook = model[1].register_forward_hook(
            lambda _, __, output: output.register_hook(lambda grad: grad * float("nan")) and None
        )
        loss_of(model, 1).backward()
        hook.remove()
        if policy == "raise":
            before = digest(opt)
            with pytest.raises(FloatingPointError) as caught:
                opt.step()
            errors.append(str(caught.value))
            assert_same_bits(before, digest(opt))
        elif policy == "skip":
            with pytest.warns(SkippedStepWarning):
                opt.step()
        else:
            opt.step()
    assert len(set(errors)) == (policy == "raise")
    assert handle.waiting == 0
    for p, q in zip(digest(a), digest(b)):
        assert torch.equal(p.isnan(), q.isnan()) and torch.equal(p.nan_to_num(), q.nan_to_num())
    if policy != "propagate":
        take_both(plain, a, measured, b, 2)
        assert handle.taken == MEASURED


def test_layers_that_are_left_out_and_frozen():
    plain, a, measured, b, handle = pair("optax")
    for step in range(6):
        for model, opt in ((plain, a), (measured, b)):
            model[0].requires_grad_(step != 3)
            opt.zero_grad()
            loss_of(model, step, layers=2 if step % 2 else 3).backward()
            opt.step()
        assert_same_bits(digest(a), digest(b))
    assert handle.taken == MEASURED - 1


def scale(p):
    p.grad.mul_(0.5)


def scale_unseen(p):
    p.grad.data.mul_(0.5)


def write_through_numpy(p):
    p.grad.numpy()[0] = 3.0


def replace_grad(p):
    p.grad = p.grad * 0.5


def exchange_grad_memory(p):
    p.grad.data = p.grad * 0.5


def transpose_grad(p):
    p.grad = p.grad.t().contiguous().t() * 0.5 if p.ndim == 2 else p.grad * 0.5


def write_param(p):
    with torch.no_grad():
        p.mul_(1.01)


def write_param_unseen(p):
    p.data.mul_(1.01)


def replace_data(p):
    p.data = p.detach() * 1.01


EDITS = [
    scale,
    scale_unseen,
    write_through_numpy,
    replace_grad,
    exchange_grad_memory,
    transpose_grad,
    write_param,
    write_param_unseen,
    replace_data,
]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_what_is_changed_before_the_step_is_measured_again(edit):
    *both, handle = pair("torch")
    take_both(*both, 0)
    take_both(*both, 1, lambda model, opt: [edit(p) for p in (model[1].weight, model.gain)])
    assert handle.taken == MEASURED - 2


def edit_variance(opt, p):
    opt.state[p]["variance"].mul_(2)


def replace_variance(opt, p):
    opt.state[p]["variance"] = opt.state[p]["variance"] * 2


def replace_all_of_a_state(opt, p):
    opt.state[p] = {key: value.clone() for key, value in opt.state[p].items()}


def change_count(opt, p):
    opt.state[p]["step"].fill_(5)


@pytest.mark.parametrize(
    "edit",
    [edit_variance, replace_variance, replace_all_of_a_state, change_count],
    ids=lambda edit: edit.__name__,
)
def test_an_edited_state_is_measured_again(edit):
    *both, handle = pair("torch")
    take_both(*both, 0)
    take_both(*both, 1, lambda model, opt: edit(opt, model.gain))
    assert handle.taken == MEASURED - 1


@pytest.mark.parametrize(
    ("key", "value", "is_taken"),
    [
        ("lr", 0.5, True),
        ("weight_decay", 0.1, True),
        ("maximize", True, True),  # squares have no sign
        ("eps", (1e-3, 1e-3), False),
        ("beta2_decay", -0.5, False),
    ],
)
def test_a_value_of_a_group_that_changes(key, value, is_taken):
    *both, handle = pair("torch")
    take_both(*both, 0)
    take_both(*both, 1, lambda model, opt: opt.param_groups[0].update({key: value}))
    assert handle.taken == (MEASURED if is_taken else 0)


def test_options_that_change():
    *both, handle = pair("torch")
    take_both(*both, 0)
    for step, (name, value) in enumerate(
        [("state_dtype", torch.float32), ("max_grad_norm", 1e-3), ("nonfinite", "raise")]
    ):

        def change(_, opt, name=name, value=value):
            setattr(opt.options, name, value)

        take_both(*both, 1 + step, change)
    assert handle.taken == MEASURED


def test_torchs_own_clipping():
    *both, handle = pair("torch")
    for step in range(3):
        take_both(
            *both,
            step,
            lambda model, opt: torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3),
        )
    assert handle.taken == 0


def test_gradients_that_a_scaler_unscales_are_measured_again():
    """torch counts no version there, and most of an embedding's gradient is zero."""

    def run(measures):
        torch.manual_seed(0)
        embedding = torch.nn.Embedding(300, 40)
        opt = Adafactor(embedding.parameters(), lr=0.1)
        handle = opt.measure_in_backward() if measures else None
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        for _ in range(4):
            opt.zero_grad()
            scaler.scale(embedding(torch.tensor([7])).square().sum()).backward()
            assert not handle or handle.waiting == (1 if opt.state else 0)
            scaler.step(opt)
            scaler.update()
        assert not handle or handle.taken == 0
        return digest(opt)

    assert_same_bits(run(measures=True), run(measures=False))


def test_a_scale_that_the_step_divides_by():
    plain, a, measured, b, handle = pair("torch")
    for step in range(3):
        a.grad_scale = b.grad_scale = torch.tensor(4.0)
        take_both(plain, a, measured, b, step)
    assert handle.taken == MEASURED
    loss_of(measured, 9).backward()
    loss_of(plain, 9).backward()
    a.grad_scale = b.grad_scale = torch.tensor(8.0)
    a.step()
    b.step()
    assert_same_bits(digest(a), digest(b))
    assert handle.taken == 0
    b.found_inf = torch.tensor(1.0)
    b.step()  # which is left out
    assert_same_bits(digest(a), digest(b))


@pytest.mark.parametrize("explicit", [True, False], ids=["accumulating", "plain"])
def test_accumulation(explicit):
    plain, a, measured, b, handle = pair("torch")
    for step in range(3):
        a.zero_grad()
        b.zero_grad()
        for part in range(3):
            (loss_of(plain, 10 * step + part) / 3).backward()
            if explicit and part < 2:
                with b.accumulating():
                    (loss_of(measured, 10 * step + part) / 3).backward()
                assert handle.waiting == 0
            else:
                (loss_of(measured, 10 * step + part) / 3).backward()
        a.step()
        b.step()
        assert_same_bits(digest(a), digest(b))
    assert handle.taken == MEASURED


@pytest.mark.parametrize("who", ["optimizer", "model", "each"])
def test_zero_grad_drops_what_was_measured(who):
    _, _, model, opt, handle = pair("torch")
    loss_of(model, 0).backward()
    opt.step()
    opt.zero_grad()
    loss_of(model, 1).backward()
    gone = weakref.ref(model.gain.grad)
    assert handle.waiting == MEASURED
    if who == "optimizer":
        opt.zero_grad()
    elif who == "model":
        model.zero_grad()
    else:
        for p in model.parameters():
            p.grad = None
    gc.collect()
    assert gone() is None
    assert handle.waiting == 0 and handle.n_bytes == 0
    before = digest(opt)
    opt.step()
    assert_same_bits(before, digest(opt))


def test_gradients_that_are_set_to_zero_in_place():
    plain, a, measured, b, handle = pair("torch")
    take_both(plain, a, measured, b, 0)
    for model, opt in ((plain, a), (measured, b)):
        loss_of(model, 1).backward()
        opt.zero_grad(set_to_none=False)
        opt.step()
    assert_same_bits(digest(a), digest(b))
    assert handle.taken == 0


def test_closure():
    plain, a, measured, b, handle = pair("torch")
    for step in range(3):
        for model, opt in ((plain, a), (measured, b)):

            def closure(model=model, opt=opt, step=step):
                opt.zero_grad()
                loss = loss_of(model, step)
                loss.backward()
                return loss

            opt.step(closure)
        assert_same_bits(digest(a), digest(b))
    assert handle.taken == MEASURED


def test_step_async_takes_what_was_measured():
    plain, a, measured, b, handle = pair("torch")
    for step in range(4):
        for model, opt in ((plain, a), (measured, b)):
            loss_of(model, step).backward()
            under_way = opt.step_async()
            opt.zero_grad()
            under_way.wait()
        assert_same_bits(digest(a), digest(b))
    assert handle.taken == MEASURED


def test_state_dicts_copies_and_pickles_while_gradients_wait():
    plain, a, measured, b, handle = pair("torch")
    take_both(plain, a, measured, b, 0)
    for model, opt in ((plain, a), (measured, b)):
        opt.zero_grad()
        loss_of(model, 1).backward()
    assert_same_bits(digest(a), digest(copy.deepcopy(b)))
    assert_same_bits(digest(a), digest(pickle.loads(pickle.dumps(b))))
    file = io.BytesIO()
    torch.save(b.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert handle.waiting == MEASURED
    a.step()
    b.step()
    assert handle.taken == MEASURED
    assert_same_bits(digest(a), digest(b))
    loss_of(plain, 2).backward()
    loss_of(measured, 2).backward()
    a.load_state_dict(saved)
    b.load_state_dict(saved)
    a.step()
    b.step()
    assert handle.taken == 0
    assert_same_bits(digest(a), digest(b))


def test_steps_of_single_parameters_between():
    *both, handle = pair("torch")
    take_both(*both, 0)
    take_both(*both, 1, lambda model, opt: opt.step_param(model.gain, opt.param_groups[0]))
    assert handle.taken == MEASURED - 1


def test_parameters_that_share_memory():
    """The second is stepped after the first, on what that has written."""

    def run(measures):
        torch.manual_seed(0)
        p, q = (torch.nn.Parameter(torch.randn(80, 80)) for _ in range(2))
        q.data = p.data
        opt = Adafactor([p, q], lr=0.1)
        handle = opt.measure_in_backward() if measures else None
        for _ in range(3):
            opt.zero_grad()
            (p.square().sum() + q.pow(4).sum()).backward()
            opt.step()
        assert not handle or handle.taken == 1
        return digest(opt)

    assert_same_bits(run(measures=True), run(measures=False))


def test_backward_in_several_threads():
    """Each model's backward runs in a thread of its own; all parameters are one optimizer's."""

    def run(measures):
        models = [network() for _ in range(3)]
        opt = Adafactor([p for model in models for p in model.parameters()], lr=0.05)
        handle = opt.measure_in_backward() if measures else None
        for step in range(4):
            opt.zero_grad()
            threads = [
                threading.Thread(
                    target=lambda k=k, step=step: loss_of(models[k], 10 * step + k).backward()
                )
                for k in range(3)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            opt.step()
        assert not handle or handle.taken == 3 * MEASURED
        return digest(opt)

    assert_same_bits(run(measures=True), run(measures=False))


def test_it_is_ended_and_excludes_fused_steps():
    plain, a, measured, b, handle = pair("torch")
    assert b.measure_in_backward() is handle  # which watches none twice
    with pytest.raises(ValueError, match=r"measure_in_backward is on, must be ended by remove\(\)"):
        b.fuse_backward()
    take_both(plain, a, measured, b, 0)
    b.zero_grad()
    loss_of(measured, 1).backward()
    handle.remove()
    assert handle.waiting == 0
    b.zero_grad()
    take_both(plain, a, measured, b, 2)
    assert handle.taken == 0 and handle.waiting == 0
    fused = b.fuse_backward()
    with pytest.raises(ValueError, match=r"fuse_backward is on, must be ended by remove\(\)"):
        b.measure_in_backward()
    fused.remove()
    again = b.measure_in_backward()
    take_both(plain, a, measured, b, 3)
    assert again.taken == MEASURED


def test_groups_that_are_added_and_parameters_that_leave():
    plain, a, measured, b, handle = pair("torch")
    extra = [torch.nn.Parameter(torch.ones(70, 70)) for _ in range(2)]
    for opt, p in ((a, extra[0]), (b, extra[1])):
        opt.add_param_group({"params": [p], "lr": 0.2})
    for step in range(4):
        for model, opt, p in ((plain, a, extra[0]), (measured, b, extra[1])):
            opt.zero_grad()
            if step == 2:
                opt.param_groups[0]["params"] = opt.param_groups[0]["params"][1:]
            (loss_of(model, step) + p.square().sum()).backward()
            opt.step()
        assert_same_bits(digest(a), digest(b))
        if step:
            assert handle.taken == MEASURED + (1 if step == 1 else 0)


def test_nothing_is_kept_alive():
    _, _, model, opt, handle = pair("torch")
    loss_of(model, 0).backward()
    opt.step()
    opt.zero_grad()
    loss_of(model, 1).backward()
    assert handle.waiting == MEASURED
    param, dead = weakref.ref(model.gain), weakref.ref(opt)
    del opt, model, _
    gc.collect()
    assert dead() is None and param() is None
    assert handle.waiting == 0


def test_a_compiled_step_measures_itself():
    plain, a, measured, b, handle = pair("torch")
    take_both(plain, a, measured, b, 0)
    compiled = torch.compile(b.step, backend="eager")
    for step in range(1, 3):
        for model, opt, take in ((plain, a, a.step), (measured, b, compiled)):
            opt.zero_grad()
            loss_of(model, step).backward()
            take()
        assert_same_bits(digest(a), digest(b))
    take_both(plain, a, measured, b, 3)
    assert handle.taken == MEASURED
