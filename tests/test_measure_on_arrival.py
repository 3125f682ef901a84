"""Gradients that are measured as they arrive step with the bits of a plain step, or nothing is changed."""

import copy
import re
import threading
import warnings
import weakref

import numpy as np
import pytest

from adafactor_native import Optimizer, SkippedStepWarning
from arrays import normal
from arrivals import (
    KINDS,
    RUNS,
    SHAPES,
    all_of,
    assert_same,
    gradients,
    one_by_one,
    optimizer,
    uses_of_state,
)
from buffers import LAYOUTS, Buffer


def steps_alike(opt, twin, grad_dtype=np.float32, **options):
    """Three steps, each tensor's gradient measured; the twin takes plain ones."""
    for t in range(3):
        grads = gradients(t, grad_dtype)
        one_by_one(opt.measure, grads)
        assert opt.step(**options).as_dict() == twin.step(grads, **options).as_dict()
        assert_same(opt, twin)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", RUNS)
def test_the_bits_are_those_of_a_plain_step(run, kind):
    steps_alike(optimizer(run, kind), optimizer(run, kind), KINDS[kind][1])


@pytest.mark.parametrize("atomic", ["all", "tensor"])
@pytest.mark.parametrize("max_grad_norm", [None, 1.0, 1e6], ids=["none", "clips", "does not clip"])
@pytest.mark.parametrize("run", RUNS)
def test_with_a_global_clip(run, max_grad_norm, atomic):
    options = {"max_grad_norm": max_grad_norm, "atomic": atomic}
    steps_alike(optimizer(run, **options), optimizer(run, **options))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_in_any_layout(layout):
    opt, twin = optimizer("huggingface"), optimizer("huggingface")
    grads = {name: Buffer(grad, layout) for name, grad in gradients(0).items()}
    one_by_one(opt.measure, {name: buffer.array for name, buffer in grads.items()})
    opt.step()
    twin.step({name: buffer.array for name, buffer in grads.items()})
    assert_same(opt, twin)
    for buffer in grads.values():
        buffer.assert_guards_intact()


def test_params_in_fortran_order():
    params = {"w": np.asfortranarray(normal((300, 70), np.float32))}
    opt = Optimizer(params)
    twin = copy.deepcopy(opt)
    grad = normal((300, 70), np.float32, seed=1)
    opt.measure("w", grad)
    opt.step()
    twin.step([grad])
    assert_same(opt, twin)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_on_any_number_of_threads_and_instruction_set(threads, each_isa):
    shape = (1500, 700)
    opts = [Optimizer([normal(shape, np.float32)], num_threads=n) for n in (threads, 1)]
    grad = normal(shape, np.float32, seed=1)
    for k, _ in enumerate(each_isa()):
        if k == 0:
            opts[0].measure("0", grad)
    opts[0].step()  # by another set than it was measured by, where there are several
    opts[1].step([grad])
    assert_same(*opts)


def test_some_are_measured_and_others_given():
    opt, twin = optimizer(), optimizer()
    for t in range(3):
        grads = gradients(t)
        early = {name: grads[name] for name in ("tiles", "kernel", "bias")}
        one_by_one(opt.measure, early)
        rest = {name: grad for name, grad in grads.items() if name not in early}
        if t == 1:  # names that were measured may be there: None, or the same array
            rest |= early | {"kernel": None}
        assert opt.step(rest).as_dict() == twin.step(grads).as_dict()
        assert_same(opt, twin)


def test_in_any_form_of_gradients():
    params = [normal((90, 50), np.float32, seed=i) for i in range(3)]
    opt = Optimizer([{"params": params[:2]}, {"params": params[2]}])
    twin = copy.deepcopy(opt)
    grads = [normal((90, 50), np.float32, seed=9 + i) for i in range(3)]
    opt.measure("1", grads[1])
    opt.step([[grads[0], grads[1]], None])
    twin.step([grads[0], grads[1], None])
    opt.measure("0", grads[0])
    opt.step([{"1": grads[1]}, [grads[2]]])
    twin.step(grads)
    assert_same(opt, twin)


def test_only_what_was_measured_is_stepped():
    opt = optimizer()
    opt.measure("panels", gradients(0)["panels"])
    report = opt.step()
    assert [name for name in opt.names if report[name]["stepped"]] == ["panels"]
    assert opt.t == 1
    with pytest.raises(TypeError, match=r"^grads is a NoneType, must be a mapping"):
        opt.step()


@pytest.mark.parametrize("way", ["array", "dlpack"])
def test_gradients_that_become_arrays(way):
    class Foreign:
        def __init__(self, array):
            self.own = array
            if way == "array":
                self.__class__ = Other

    class Other(Foreign):
        def __array__(self, dtype=None, copy=None):
            return self.own

    for method in ("__dlpack__", "__dlpack_device__"):
        setattr(Foreign, method, lambda self, *a, _m=method, **k: getattr(self.own, _m)(*a, **k))
    opt, twin = optimizer(), optimizer()
    grads = gradients(0)
    one_by_one(opt.measure, {name: Foreign(grad) for name, grad in grads.items()})
    opt.step({name: Foreign(grad) for name, grad in grads.items()})  # other objects, same memory
    twin.step(grads)
    assert_same(opt, twin)


# What is not finite


@pytest.mark.parametrize("atomic", ["all", "tensor"])
@pytest.mark.parametrize("nonfinite", ["raise", "skip", "propagate"])
@pytest.mark.parametrize("where", ["tiles", "heads", "kernel", "vector", "bias"])
def test_what_is_not_finite_is_found_by_the_step(where, nonfinite, atomic):
    opt, twin = (optimizer("torch", atomic=atomic, nonfinite=nonfinite) for _ in range(2))
    bad = gradients(0)
    bad[where].flat[-3] = np.nan
    one_by_one(opt.measure, bad)
    messages, reports = [], []
    for each, given in ((opt, None), (twin, bad)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SkippedStepWarning)
                reports.append(each.step(given))
        except FloatingPointError as error:
            messages.append(str(error))
    assert_same(opt, twin)
    assert len(set(messages)) == (nonfinite == "raise")
    if reports:
        assert reports[0].as_dict() == reports[1].as_dict()
    if nonfinite != "raise":
        assert not opt._tensors.has_measured
        return
    # What was not stepped waits still, and is refused again; then the run goes on.
    with pytest.raises(FloatingPointError, match=re.escape(f"grads[{where!r}]")):
        opt.step()
    opt.discard_measured()
    good = gradients(2)
    one_by_one(opt.measure, good)
    opt.step()
    twin.step(good)
    assert_same(opt, twin)


def test_after_an_error_it_goes_on_with_the_same_bits():
    opt, twin = optimizer("huggingface"), optimizer("huggingface")
    grads = gradients(0)
    one_by_one(opt.measure, {name: grads[name] for name in ("panels", "vector", "kernel")})
    bad = {name: None for name in grads} | {"tiles": np.full(SHAPES["tiles"], np.inf, np.float32)}
    before = all_of(opt)
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=r"grads\['tiles'\]\[0, 0\] is inf"):
            opt.step(bad)
        with pytest.raises(TypeError, match=r"^grads\['tiles'\] is a list"):
            opt.step(bad | {"tiles": [1.0]})
    assert all_of(opt) == before
    opt.step(grads)
    twin.step(grads)
    assert_same(opt, twin)


# What changes between measure and step


CHANGES = {
    "lr": {"lr": 0.3, "relative_step": False},
    "eps": {"eps": 1e-2},
    "beta2": {"beta2": 0.5},
    "decay_rate": {"decay_rate": -0.5},
    "scale_parameter": {"scale_parameter": False},
    "eps_mode": {"eps_mode": "both"},
    "clip_threshold": {"clip_threshold": 0.1},
    "rms_scope": {"rms_scope": "matrix"},
    "maximize": {"maximize": True},
    "beta1": {"beta1": 0.3},
    "weight_decay": {"weight_decay": 0.2},
    "rounding": {"rounding": "stochastic"},
    "bias_correction": {"bias_correction": "beta2", "decay_rate": None, "beta2": 0.9},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("run", ["paper", "each matrix", "unfactored", "huggingface"])
def test_a_hyper_parameter_set_in_between_holds(run, change):
    if change == "beta1" and RUNS[run].get("beta1") is None:
        change = "eps"  # whether there is a first moment is settled
    opt, twin = optimizer(run), optimizer(run)
    for each in (opt, twin):
        each.step(gradients(2))
    grads = gradients(0)
    one_by_one(opt.measure, grads)
    for each in (opt, twin):
        for group in each.param_groups:
            group.update(CHANGES[change])
    assert opt.step().as_dict() == twin.step(grads).as_dict()
    assert_same(opt, twin)


@pytest.mark.parametrize("name, value", [("num_threads", 1), ("seed", 5), ("max_grad_norm", 0.1)])
def test_an_attribute_set_in_between_holds(name, value):
    kind = "float16, stochastic"
    opt, twin = optimizer(kind=kind), optimizer(kind=kind)
    grads = gradients(0)
    one_by_one(opt.measure, grads)
    for each in (opt, twin):
        setattr(each, name, value)
    opt.step()
    twin.step(grads)
    assert_same(opt, twin)


@pytest.mark.parametrize("said", [None, 8.0])
@pytest.mark.parametrize("run", ["paper", "numpy, eps matters", "unfactored", "torch"])
def test_with_a_scaled_loss(run, said):
    """The scale enters what is measured: where it was not said, the step measures again."""
    opt, twin = optimizer(run), optimizer(run)
    for t in range(2):
        grads = gradients(t)
        one_by_one(opt.measure, grads, grad_scale=said)
        opt.step(grad_scale=8.0)
        twin.step(grads, grad_scale=8.0)
        assert_same(opt, twin)


def test_another_scale_than_was_said_is_refused():
    opt = optimizer()
    opt.measure("bias", gradients(0)["bias"], grad_scale=8.0)
    before = all_of(opt)
    with pytest.raises(
        ValueError, match=r"^grad_scale is 1\.0, must be 8\.0 as opt\.measure was told"
    ):
        opt.step()
    with pytest.raises(ValueError, match=r"^grad_scale is 0\.0, must be a finite number > 0"):
        opt.measure("panels", gradients(0)["panels"], grad_scale=0)
    assert all_of(opt) == before
    opt.step(grad_scale=8.0)


def test_no_schedule_is_called_to_measure():
    calls = []
    opt = Optimizer(
        {"w": np.ones((90, 60))}, relative_step=False, lr=lambda t: calls.append(t) or 0.1
    )
    for t in (1, 2):
        opt.measure("w", normal((90, 60)))
        assert calls == list(range(1, t))
        opt.step()
        assert calls == list(range(1, t + 1))


@pytest.mark.parametrize("at", [0, -1, "middle"])
@pytest.mark.parametrize("what", ["grads", "params"])
def test_what_was_written_to_is_refused(what, at):
    opt = optimizer()
    grads = gradients(0)
    one_by_one(opt.measure, grads)
    array = (grads if what == "grads" else opt.params)["panels"]
    array.flat[array.size // 2 if at == "middle" else at] *= 2
    before = all_of(opt)
    with pytest.raises(ValueError, match=rf"^{what}\['panels'\] was written to after opt\.measure"):
        opt.step()
    assert all_of(opt) == before
    twin = copy.deepcopy(optimizer())
    for name, param in opt.params.items():
        twin.params[name][...] = param
    if what == "params":
        opt.params_changed()
    else:
        opt.discard_measured()
        one_by_one(opt.measure, grads)
    opt.step()
    twin.step(grads)
    assert_same(opt, twin)


@pytest.mark.parametrize("carries", [False, True])
def test_params_that_were_said_to_have_changed_are_measured_again(carries):
    opts = [optimizer(carry_param_rms=carries) for _ in range(2)]
    opt, twin = opts
    for each in opts:
        each.step(gradients(0))
    grads = gradients(2)
    one_by_one(opt.measure, grads)
    for each in opts:
        each.params["panels"][3:9] = 5
        each.params_changed()
    opt.step()
    twin.step(grads)
    assert_same(opt, twin)


def test_what_lies_behind_a_gradient_of_zeros_may_change():
    """An element that is not zero is looked for in the gradient, and nowhere else."""
    opt = Optimizer({"w": normal((300, 70), np.float32)})
    twin = copy.deepcopy(opt)
    around = np.ones((400, 70), np.float32)
    grad = around[:300]
    grad[...] = 0
    opt.measure("w", grad)
    around[300:] = 2
    opt.step()
    twin.step([grad])
    assert_same(opt, twin)


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")  # of NumPy 2.5
def test_a_gradient_that_is_another_array_now_is_refused():
    opt = optimizer()
    grads = gradients(0)
    one_by_one(opt.measure, grads)
    before = all_of(opt)
    text = r"^grads\['panels'\] is another array than opt\.measure was given, .*opt\.discard_measured\(\)"
    others = (grads["panels"].copy(), grads["panels"][::-1], grads["panels"].astype(np.float64))
    for other in others:
        with pytest.raises(ValueError, match=text):
            opt.step({"panels": other})
    grads["panels"].shape = (30, 700)
    with pytest.raises(ValueError, match=r"^grads\['panels'\] has shape \(30, 700\), must be"):
        opt.step()
    grads["panels"].shape = (300, 70)
    assert all_of(opt) == before
    opt.step()


def test_the_gradient_is_held_until_the_step_and_no_longer():
    opt = optimizer()
    for end in (opt.step, opt.discard_measured):
        gone = []
        for name, grad in gradients(0).items():
            opt.measure(name, grad)
            if name != "scalar":
                weakref.finalize(grad, gone.append, name)
        del grad
        assert gone == []
        end()
        assert len(gone) == len(SHAPES) - 1
        assert "measured" not in opt.memory.by_kind


def test_memory_has_what_is_held():
    opt = Optimizer({"w": np.ones((800, 3200), np.float32), "b": np.ones(800, np.float32)})
    assert "measured" not in opt.memory.by_kind
    opt.measure("w", np.ones((800, 3200), np.float32))
    opt.measure("b", np.ones(800, np.float32))
    held = opt.memory.by_tensor
    assert 0 < held["w"]["measured"] < 40 * (800 + 3200)
    assert held["b"]["measured"] == 0


# What is refused


def test_what_is_refused():
    opt = optimizer()
    panels = gradients(0)["panels"]
    refused = [
        (("w", panels), ValueError, "name is 'w', must be one of opt.names"),
        (("panel", panels), ValueError, "name is 'panel', did you mean 'panels'?"),
        ((0, panels), TypeError, "name is a int, must be a str of opt.names"),
        (("panels", None), TypeError, "grads['panels'] is a NoneType, must be a numpy.ndarray"),
        (("panels", panels.tolist()), TypeError, "grads['panels'] is a list, must be"),
        (("panels", panels.astype(int)), TypeError, "grads['panels'] has dtype int64, must be"),
        (("panels", panels.T), ValueError, "grads['panels'] has shape (70, 300), must be"),
        (("panels", opt.params["panels"]), ValueError, "grads['panels'] overlaps params['panels']"),
    ]
    for arguments, error, text in refused:
        with pytest.raises(error, match="^" + re.escape(text)):
            opt.measure(*arguments)
    assert not opt._tensors.has_measured
    opt.measure("panels", panels)
    with pytest.raises(ValueError, match=r"^grads\['panels'\] is measured already and waits"):
        opt.measure("panels", panels)
    opt.discard_measured()
    opt.measure("panels", panels)


def test_one_tensor_is_not_taken_in_two_ways():
    opt, twin = optimizer(), optimizer()
    grads = gradients(0)
    opt.measure("panels", grads["panels"])
    with pytest.raises(ValueError, match=r"^grads\['panels'\] must be None, as the next step has"):
        opt.accumulate(grads)
    with pytest.raises(ValueError, match=r"^grads\['panels'\] is measured and waits for opt\.step"):
        opt.step_tensor("panels", grads["panels"])
    rest = {name: grad for name, grad in grads.items() if name != "panels"}
    opt.accumulate(rest)
    opt.accumulate({**rest, "panels": None})
    with pytest.raises(ValueError, match=r"^grads\['tiles'\] has been accumulated, which waits"):
        opt.measure("tiles", grads["tiles"])
    with pytest.raises(ValueError, match=r"^2 accumulated gradients wait for a step"):
        opt.step(rest)
    assert opt.memory.by_kind["sum"] > 0 and opt.memory.by_kind["measured"] > 0
    # The mean of two times the same is that; the scale of what was measured is not the mean's.
    opt.step(grad_scale=4.0)
    twin.step(grads, grad_scale=4.0)
    assert_same(opt, twin)
    assert not opt._tensors.waits and opt._accumulated.n == 0


def test_nothing_that_waits_is_lost(tmp_path):
    opt = optimizer()
    state = opt.state_dict()
    param = opt.params["panels"]
    opt.measure("panels", gradients(0)["panels"])
    before = all_of(opt)
    for use in uses_of_state(opt, state, tmp_path / "state.npz"):
        with pytest.raises(
            ValueError, match=r"^1 measured gradients wait for a step, .*opt\.discard_measured\(\)$"
        ):
            use()
    assert all_of(opt) == before and opt.params["panels"] is param
    opt.add_param_group({"params": {"new": np.ones((80, 70), np.float32)}})
    opt.step()
    assert opt.counts.tolist()[opt.names.index("panels")] == 1
    opt.state_dict()


def test_measured_in_one_thread_and_stepped_in_another():
    opt, twin = optimizer(), optimizer()
    grads = gradients(0)
    thread = threading.Thread(target=one_by_one, args=(opt.measure, grads))
    thread.start()
    thread.join()
    optimizer().step(gradients(2))  # has this thread's own memory of steps written to
    opt.step()
    twin.step(grads)
    assert_same(opt, twin)


def test_measured_before_a_fork_and_stepped_in_the_child(python):
    out = python("""
        import os
        from arrivals import all_of, gradients, optimizer
        opt, twin = optimizer(), optimizer()
        for name, grad in gradients(0).items():
            opt.measure(name, grad)
        child = os.fork()
        if child == 0:
            opt.step()
            twin.step(gradients(0))
            os._exit(0 if all_of(opt) == all_of(twin) else 3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        opt.step()
        twin.step(gradients(0))
        assert all_of(opt) == all_of(twin)
        print("well")
    """)
    assert out == "well\n"
