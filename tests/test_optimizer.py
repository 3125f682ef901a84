"""Whole models: how tensors, groups and gradients are given, what can be set, what a step reports."""

import copy
import math
import pickle
import re
import weakref
from collections import OrderedDict, UserDict
from types import MappingProxyType

import numpy as np
import pytest

import adafactor_native as an
from adafactor_native import Optimizer
from problems import normal

SHAPES = {"w": (4, 5), "b": (5,), "k": (2, 3, 4), "s": ()}


def model(dtype=np.float32, seed=0):
    """Return params by name: a matrix, a vector, a kernel and a scalar."""
    return {
        name: normal(shape, dtype, seed=seed + 10 * i)
        for i, (name, shape) in enumerate(SHAPES.items())
    }


def gradients(seed=1, dtype=np.float32):
    return model(dtype, seed=seed)


def bits(opt):
    """Everything an optimizer changes, as bytes."""
    arrays = [*opt.params.values(), *(x for kinds in opt.state.values() for x in kinds.values())]
    return [x.tobytes() for x in arrays], opt.t, opt.skipped, opt.counts.tolist()


def assert_refused(opt, error, text, *args, **kwargs):
    """step raises this error with this text and leaves every bit of everything as it was."""
    before = bits(opt)
    with pytest.raises(error, match="^" + re.escape(text)) as caught:
        opt.step(*args, **kwargs)
    assert caught.type is error
    assert bits(opt) == before


def grouped(params):
    """The same tensors as groups of every kind: a mapping, a sequence, one array."""
    w, b, k, s = params.values()
    return [{"params": {"w": w}}, {"params": [b, k], "lr": 0.5}, {"params": s, "eps": 1e-3}]


STRUCTURES = {
    "dict": lambda x: x,
    "OrderedDict": OrderedDict,
    "mapping": lambda x: MappingProxyType(UserDict(x)),
    "other order": lambda x: dict(reversed(x.items())),
    "list": lambda x: list(x.values()),
    "tuple": lambda x: tuple(x.values()),
}


@pytest.mark.parametrize("convention", ["numpy", "torch"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_gradients_by_name_or_in_order(structure, convention):
    one, other = (Optimizer(model(), convention) for _ in range(2))
    for t in range(3):
        grads = gradients(t)
        one.step(grads)
        other.step(STRUCTURES[structure](grads))
    assert bits(one) == bits(other)


@pytest.mark.parametrize(
    "of_groups",
    [
        lambda w, b, k, s: [{"w": w}, [b, k], s],
        lambda w, b, k, s: [[w], {"2": k, "1": b}, [s]],
        lambda w, b, k, s: ({"w": w}, (b, k), s),
        lambda w, b, k, s: {"w": w, "1": b, "2": k, "3": s},
        lambda w, b, k, s: [w, b, k, s],
    ],
)
def test_gradients_of_groups(of_groups):
    one, other = (Optimizer(grouped(model()), "numpy") for _ in range(2))
    for t in range(3):
        grads = gradients(t).values()
        one.step(list(grads))
        other.step(of_groups(*grads))
    assert bits(one) == bits(other)


def test_names():
    params = model()
    assert Optimizer(params, "numpy").names == ("w", "b", "k", "s")
    assert Optimizer(list(params.values()), "numpy").names == ("0", "1", "2", "3")
    opt = Optimizer(grouped(params), "numpy")
    assert opt.names == ("w", "1", "2", "3")
    assert [group["names"] for group in opt.param_groups] == [("w",), ("1", "2"), ("3",)]
    assert all(x is y for x, y in zip(opt.params.values(), params.values()))
    assert all(
        x is y for x, y in zip((x for g in opt.param_groups for x in g["params"]), params.values())
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_seed_convention_is_adafactor_bit_for_bit(dtype):
    params = model(dtype)
    opt = Optimizer(params, "numpy", lr=0.5, beta2=0.75, eps=1e-8, clip_threshold=0.5)
    singles = {
        name: (an.AdaFactor(x.shape, 0.5, 0.75, 1e-8, 0.5), x.copy()) for name, x in params.items()
    }
    for t in range(4):
        grads = gradients(t)
        opt.step(grads)
        for name, (single, param) in singles.items():
            single.update(param, grads[name])
    for name, (single, param) in singles.items():
        assert params[name].tobytes() == param.tobytes()
        kept = opt.state[name]
        for kind in ("exp_row", "exp_col", "v"):
            array = getattr(single, kind)
            assert (array is None) == (kind not in kept)
            assert array is None or array.tobytes() == kept[kind].tobytes()


def test_a_group_steps_by_its_own_hyper_parameters():
    params = model()
    opt = Optimizer(grouped(params), "numpy", lr=0.25)
    alone = [
        Optimizer({"w": params["w"].copy()}, "numpy", lr=0.25),
        Optimizer([params["b"].copy(), params["k"].copy()], "numpy", lr=0.5),
        Optimizer([params["s"].copy()], "numpy", lr=0.25, eps=1e-3),
    ]
    for t in range(3):
        w, b, k, s = gradients(t).values()
        opt.step([w, b, k, s])
        for single, grads in zip(alone, ([w], [b, k], [s])):
            single.step(grads)
    stepped = [x for single in alone for x in single.params.values()]
    assert [x.tobytes() for x in params.values()] == [x.tobytes() for x in stepped]


def test_none_leaves_a_tensor_out():
    params = model()
    opt = Optimizer(params, "torch")
    opt.step(gradients())
    before = [params["k"].tobytes(), *(x.tobytes() for x in opt.state["k"].values())]
    report = opt.step({**gradients(2), "k": None})
    assert [params["k"].tobytes(), *(x.tobytes() for x in opt.state["k"].values())] == before
    assert (opt.t, opt.counts.tolist()) == (2, [2, 2, 1, 2])
    assert report.stepped.tolist() == [True, True, False, True]
    assert np.isnan([report["k"][name] for name in ("rms_grad", "rms_u", "step_size")]).all()
    assert not report["k"]["stepped"] and report["w"]["stepped"]


def test_a_whole_group_left_out():
    opt = Optimizer(grouped(model()), "numpy")
    report = opt.step([None, [np.ones(5), None], np.ones(())])
    assert report.stepped.tolist() == [False, True, False, True]


def test_a_numpy_scalar_is_a_gradient_of_no_axes():
    one, other = (Optimizer(model(), "numpy") for _ in range(2))
    one.step(gradients())
    other.step({**gradients(), "s": np.float32(gradients()["s"])})
    assert bits(one) == bits(other)


def test_lr_is_called_with_t():
    asked = []

    def lr(t):
        asked.append(t)
        return 0.5 / t

    scheduled, by_hand = Optimizer(model(), "numpy", lr=lr), Optimizer(model(), "numpy")
    for t in (1, 2, 3):
        by_hand.param_groups[0]["lr"] = 0.5 / t
        scheduled.step(gradients(t))
        by_hand.step(gradients(t))
    assert asked == [1, 2, 3]
    assert bits(scheduled) == bits(by_hand)


@pytest.mark.parametrize("convention", ["optax", "keras", "t5x"])
def test_lr_of_libraries_that_count_from_zero(convention):
    asked = []

    def learning_rate(count):
        asked.append(count)
        return 0.1

    opt = Optimizer(model(), convention, learning_rate=learning_rate)
    opt.step(gradients())
    opt.step(gradients())
    assert asked == [0, 1]


def test_what_a_schedule_returns_is_checked():
    opt = Optimizer(model(), "numpy", lr=lambda t: 0.1 if t == 1 else -1.0)
    opt.step(gradients())
    assert_refused(opt, ValueError, "lr(2) is -1.0, must be a finite number >= 0", gradients())
    opt = Optimizer(model(), "numpy", schedule=lambda t: None)
    assert_refused(opt, TypeError, "schedule(1) is a NoneType, must be a finite", gradients())


def test_weight_decay_in_each_mode():
    """With beta2 = 1 and no gradient, all that is left of a step is the decay."""
    lr, wd, zeros = 0.5, 0.25, np.zeros((2, 3))
    for hyper_parameters, keep in [
        ({}, 1 - lr * wd),
        ({"lr": lambda t: lr / t}, 1 - lr * wd),
        ({"schedule": lambda t: 0.5}, 1 - lr * 0.5 * wd),
        ({"weight_decay_mode": "alone"}, 1 - wd),
        ({"weight_decay_mode": "alone", "weight_decay_lr_exponent": 2}, 1 - wd * lr**2),
        ({"weight_decay_mode": "schedule", "schedule": lambda t: 0.5}, 1 - wd * 0.5),
        ({"weight_decay_mode": "schedule"}, 1 - wd),
        ({"weight_decay_mode": "step", "scale_parameter": False}, 1 - lr * wd),
        ({"weight_decay_mode": "step"}, 1 - lr * 2.0 * wd),
        ({"weight_decay": lambda t: wd * t}, 1 - lr * wd),
        ({"weight_decay_mask": lambda name: name != "w"}, 1.0),
        ({"weight_decay_mask": {"w": True}}, 1 - lr * wd),
        ({"weight_decay_mask": ["w"]}, 1 - lr * wd),
        ({"weight_decay_mask": ()}, 1.0),
    ]:
        param = np.full((2, 3), 2.0)
        Optimizer({"w": param}, "numpy", **{"lr": lr, "weight_decay": wd, **hyper_parameters}).step(
            [zeros]
        )
        np.testing.assert_allclose(param, 2.0 * keep, rtol=1e-15, err_msg=str(hyper_parameters))


def test_factored_axes_and_the_state_they_need():
    def kept(shape, **switches):
        state = Optimizer({"x": np.ones(shape)}, "numpy", **switches).state["x"]
        return {kind: array.shape for kind, array in state.items()}

    assert kept((4, 5)) == {"exp_row": (4,), "exp_col": (5,)}
    assert kept((2, 4, 5)) == {"v": (2, 4, 5)}
    assert kept((2, 4, 5), factored_axes="last_two") == {"exp_row": (2, 4), "exp_col": (2, 5)}
    assert kept((6, 2, 5), factored_axes="two_largest") == {"exp_row": (2, 5), "exp_col": (2, 6)}
    assert kept((5, 2, 5), factored_axes="two_largest") == {"exp_row": (2, 5), "exp_col": (2, 5)}
    assert kept((6, 2, 5), factored_axes=(0, -2)) == {"exp_row": (5, 6), "exp_col": (5, 2)}
    assert kept((4, 5), factored_axes="none") == {"v": (4, 5)}
    assert kept((4, 5), min_dim_size_to_factor=5) == {"v": (4, 5)}
    assert kept((4, 5), min_dim_size_to_factor=4) == {"exp_row": (4,), "exp_col": (5,)}
    assert kept((7,), factored_axes=(0, 1), beta1=0.9) == {"v": (7,), "m": (7,)}
    assert kept((), factored_axes="last_two") == {"v": ()}
    assert kept((0, 5)) == {"exp_row": (0,), "exp_col": (5,)}


def test_the_first_moment_is_like_param():
    for param in (np.ones((4, 5), np.float32), np.ones((4, 5), order="F"), np.ones((8, 5))[::-2]):
        m = Optimizer([param], "numpy", beta1=0.9).state["0"]["m"]
        assert (m.shape, m.dtype, m.any()) == (param.shape, param.dtype, False)
        assert m.flags.f_contiguous == param.flags.f_contiguous


def test_memory():
    opt = Optimizer(model(), "torch", beta1=0.9)
    memory = opt.memory
    floats = {
        "w": {"exp_row": 4, "exp_col": 5, "m": 20},
        "b": {"v": 5, "m": 5},
        "k": {"exp_row": 2 * 3, "exp_col": 2 * 4, "m": 24},
        "s": {"v": 1, "m": 1},
    }
    assert memory.by_tensor == {
        name: {kind: n * (4 if kind == "m" else 8) for kind, n in kinds.items()}
        for name, kinds in floats.items()
    }
    assert memory.by_kind == {"exp_row": 80, "exp_col": 104, "v": 48, "m": 200}
    assert memory.total == sum(x.nbytes for kinds in opt.state.values() for x in kinds.values())
    assert (memory.elements, memory.per_element) == (50, memory.total / 50)
    assert "m=200" in repr(memory)
    assert math.isnan(Optimizer([np.ones((0, 3))], "numpy").memory.per_element)


def test_report():
    params, grads = model(np.float64), gradients(dtype=np.float64)
    before = {name: x.copy() for name, x in params.items()}
    opt = Optimizer(params, "numpy", lr=0.5, beta2=0.0, clip_threshold=0.5)
    report = opt.step(grads)

    def rms(x):
        return math.sqrt(np.mean(np.square(x)))

    assert report.names == opt.names and report.t == 1
    for i, name in enumerate(opt.names):
        one = report[name]
        assert one["rms_grad"] == pytest.approx(rms(grads[name]), rel=1e-12)
        assert one["rms_param"] == pytest.approx(rms(before[name]), rel=1e-12)
        assert one["step_size"] == pytest.approx(0.5 * rms(before[name]), rel=1e-12)
        assert one["clip_divisor"] == pytest.approx(max(1, one["rms_u"] / 0.5), rel=1e-12)
        moved = rms(params[name] - before[name]) * one["clip_divisor"] / one["step_size"]
        assert one["rms_u"] == pytest.approx(moved, rel=1e-9)
        assert one["rms_u"] == report.rms_u[i] and one["stepped"] is True
    norm = math.sqrt(sum(np.square(x).sum() for x in grads.values()))
    assert report.grad_norm == pytest.approx(norm, rel=1e-12)
    assert report.skipped is False
    for numbers in (report.rms_grad, report.rms_param, report.step_size):
        assert (numbers.shape, numbers.dtype) == ((4,), np.float64)

    flat = report.as_dict()
    assert flat["rms_u/k"] == report["k"]["rms_u"] and flat["grad_norm"] == report.grad_norm
    assert len(flat) == 4 + 5 * 4 and all(isinstance(x, (int, float)) for x in flat.values())
    assert "t=1" in repr(report) and "stepped=4 of 4" in repr(report)
    assert len(str(report).splitlines()) == 6 and "rms_grad" in str(report)
    assert repr(pickle.loads(pickle.dumps(report))) == repr(report)
    with pytest.raises(KeyError, match="nobody"):
        report["nobody"]


def test_a_printed_report_of_many_tensors_has_those_that_were_clipped():
    params = {f"x{i}": np.ones(3) for i in range(40)}
    grads = {name: np.ones(3) for name in params}
    opt = Optimizer(params, "numpy")
    opt.step(grads)
    text = str(opt.step({**grads, "x17": np.full(3, 1e3)}))
    assert re.search(r"^x17 ", text, re.MULTILINE) and len(text.splitlines()) < 20


def test_grad_scale_and_max_grad_norm():
    grads = gradients(dtype=np.float64)
    norm = math.sqrt(sum(np.square(x).sum() for x in grads.values()))
    clipped, scaled, by_hand = (Optimizer(model(np.float64), "torch") for _ in range(3))
    clipped.max_grad_norm = norm / 3
    report = clipped.step({name: x * 8 for name, x in grads.items()}, grad_scale=8.0)
    scaled.step({name: x * 1024 for name, x in grads.items()}, 3 * 1024)
    by_hand.step({name: x / 3 for name, x in grads.items()})
    assert report.grad_norm == pytest.approx(norm, rel=1e-12)
    for x, y, z in zip(*(opt.params.values() for opt in (clipped, scaled, by_hand))):
        np.testing.assert_allclose(y, z, rtol=1e-12)
        np.testing.assert_allclose(x, z, rtol=1e-5)


def test_a_nonfinite_gradient():
    bad = gradients()
    bad["k"][1, 2, 3] = np.nan
    opt = Optimizer(model(), "torch")
    opt.step(gradients())
    assert_refused(opt, FloatingPointError, "grads['k'][1, 2, 3] is nan, must be finite", bad)
    opt.nonfinite = "skip"
    before = bits(opt)
    report = opt.step(bad)
    assert report.skipped and not report.stepped.any()
    assert bits(opt)[0] == before[0] and (opt.t, opt.skipped) == (1, 1)
    opt.nonfinite = "propagate"
    assert opt.step(bad).skipped is False
    assert np.isnan(opt.params["k"]).any() and opt.t == 2


def test_a_nonfinite_gradient_where_tensors_are_atomic():
    bad = gradients()
    bad["k"][1, 2, 3] = np.nan
    opt, good = (Optimizer(model(), "torch", atomic="tensor") for _ in range(2))
    good.step(gradients())
    with pytest.raises(FloatingPointError, match=re.escape("grads['k'][1, 2, 3] is nan")):
        opt.step(bad)
    assert (opt.t, opt.skipped, opt.counts.tolist()) == (1, 0, [1, 1, 0, 0])
    for name, start in model().items():
        stepped = good.params[name] if name in "wb" else start
        assert opt.params[name].tobytes() == stepped.tobytes()

    opt = Optimizer(model(), "torch", atomic="tensor", nonfinite="skip")
    report = opt.step(bad)
    assert (opt.t, opt.skipped, opt.counts.tolist()) == (1, 1, [1, 1, 0, 1])
    assert report.skipped and report.stepped.tolist() == [True, True, False, True]
    for name, start in model().items():
        stepped = start if name == "k" else good.params[name]
        assert opt.params[name].tobytes() == stepped.tobytes()


def test_carried_rms_of_params():
    reading, carrying = (
        Optimizer(model(), "numpy"),
        Optimizer(model(), "numpy", carry_param_rms=True),
    )
    for t in range(4):
        for opt in (reading, carrying):
            if t == 2:
                opt.params["w"][0, 0] *= 100.0
                opt.params_changed()
            opt.step(gradients(t))
    assert bits(reading) == bits(carrying)


def test_add_param_group():
    params = model()
    opt = Optimizer({"w": params["w"]}, "torch", lr=0.5)
    opt.step({"w": np.ones((4, 5))})
    state = opt.state["w"]["exp_row"]
    opt.add_param_group({"params": {"b": params["b"]}, "lr": 0.25})
    opt.add_param_group({"params": [params["k"]]})
    assert opt.names == ("w", "b", "2") and opt.state["w"]["exp_row"] is state
    assert [group["lr"] for group in opt.param_groups] == [0.5, 0.25, 0.5]
    assert (opt.t, opt.counts.tolist()) == (1, [1, 0, 0])
    opt.step([np.ones((4, 5)), np.ones(5), np.ones((2, 3, 4))])
    assert (opt.t, opt.counts.tolist()) == (2, [2, 1, 1])

    before, groups = bits(opt), opt.param_groups
    for group, error, text in [
        ({"params": params["k"]}, ValueError, "params['3'] overlaps params['2']"),
        ({"params": {"w": np.ones(3)}}, ValueError, "params['w'] is given twice, names must be"),
        ({"params": {"x": [1.0]}}, TypeError, "params['x'] is a list, must be a numpy.ndarray"),
        ({"params": {"x": np.ones(3)}, "lr": -1}, ValueError, "group['lr'] is -1.0, must be a"),
        ({"params": {"x": np.ones(3, int)}}, TypeError, "params['x'] has dtype int64, must be"),
        ({"lr": 0.5}, ValueError, "group['params'] is missing, must be given"),
        ([np.ones(3)], TypeError, "group is a list, must be a mapping with 'params'"),
    ]:
        with pytest.raises(error, match="^" + re.escape(text)):
            opt.add_param_group(group)
        assert bits(opt) == before and opt.param_groups is groups
    opt.step([None, None, np.ones((2, 3, 4))])


def test_groups_are_mappings():
    opt = Optimizer(grouped(model()), "numpy")
    group = opt.param_groups[1]
    assert (group["lr"], group["names"], len(group["params"])) == (0.5, ("1", "2"), 2)
    assert set(group) == {"params", "names", *an.switches.SWITCHES} and len(group) == len(
        set(group)
    )
    assert dict(group)["beta2"] == 0.999
    group["beta2"] = 0.5
    group.update({"relative_step": True}, warmup_init=True)
    assert (group["beta2"], group["warmup_init"]) == (0.5, True)
    assert opt.param_groups[0]["beta2"] == 0.999
    assert "beta2=0.5" in repr(group) and "tensors=2" in repr(group)

    before = dict(group)
    for changes, error, text in [
        ({"lr": -1}, ValueError, "lr is -1.0, must be a finite number >= 0 or a callable of t"),
        ({"lr": "0.1"}, TypeError, "lr is a str, must be a finite number >= 0 or a callable of t"),
        (
            {"beta2": 0.1, "eps": -1},
            ValueError,
            "eps is -1.0, must be a finite number >= 0 or None",
        ),
        ({"relative_step": False}, ValueError, "warmup_init is True, must be False without"),
        ({"beta1": 0.9}, ValueError, "beta1 is 0.9, must stay None"),
        ({"factored_axes": "none"}, ValueError, "factored_axes is settled when a group is added"),
        ({"weight_decay_mask": ["1"]}, ValueError, "weight_decay_mask is settled when a group"),
        ({"params": []}, TypeError, "params cannot be set, must be given when the group is added"),
        ({"names": []}, TypeError, "names cannot be set"),
        ({"learning_rate": 0.1}, KeyError, "\"learning_rate is no switch, did you mean 'lr'?"),
    ]:
        with pytest.raises(error, match="^" + re.escape(text)):
            group.update(changes)
        assert dict(group) == before
    with pytest.raises(TypeError, match="lr cannot be deleted"):
        del group["lr"]
    with pytest.raises(KeyError, match="nothing"):
        group["nothing"]


def test_hyper_parameters_set_between_steps_hold_from_the_next_on():
    one = Optimizer(model(), "numpy", lr=0.5)
    one.step(gradients(1))
    one.param_groups[0]["lr"] = 0.25
    one.step(gradients(2))
    one.param_groups[0].update(beta2=0.5, clip_threshold=None, scale_parameter=False)
    one.max_grad_norm = 0.5
    one.step(gradients(3))

    other = Optimizer(model(), "numpy", lr=0.5)
    for t, changes in [
        (1, {}),
        (2, {"lr": 0.25}),
        (3, {"lr": 0.25, "beta2": 0.5, "clip_threshold": None, "scale_parameter": False}),
    ]:
        next_one = Optimizer(
            other.params, "numpy", max_grad_norm=0.5 if t == 3 else None, **changes
        )
        if t == 1:
            next_one.param_groups[0]["lr"] = 0.5
        for name, kinds in next_one.state.items():
            for kind, array in kinds.items():
                array[...] = other.state[name][kind]
        next_one._set_counts(other.t, 0, other.counts)
        next_one.step(gradients(t))
        other = next_one
    assert bits(one) == bits(other)


COPIES = {
    **{
        f"pickle {protocol}": lambda x, protocol=protocol: pickle.loads(pickle.dumps(x, protocol))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_continue_with_the_same_bits_and_arrays_of_their_own(way):
    opt = Optimizer(
        grouped(model()), "optax", momentum=0.9, weight_decay_rate=0.1, nonfinite="skip",
        min_dim_size_to_factor=0, atomic="tensor", max_grad_norm=2.0, num_threads=2, carry_param_rms=True,
    )  # fmt: skip
    opt.step({**dict(zip(opt.names, gradients().values())), "2": None})
    opt.param_groups[0]["weight_decay"] = 0.2
    twin = COPIES[way](opt)
    assert bits(twin) == bits(opt) and repr(twin) == repr(opt)
    assert [dict(g, params=0) for g in twin.param_groups] == [
        dict(g, params=0) for g in opt.param_groups
    ]
    for name in ("nonfinite", "atomic", "max_grad_norm", "num_threads", "carry_param_rms"):
        assert getattr(twin, name) == getattr(opt, name)
    before = bits(opt)
    twin.param_groups[0]["clip_threshold"] = 0.5
    twin.step(list(gradients(2).values()))
    assert bits(opt) == before
    opt.param_groups[0]["clip_threshold"] = 0.5
    opt.step(list(gradients(2).values()))
    assert bits(twin) == bits(opt)
    twin.add_param_group({"params": [np.ones(3)]})
    assert twin.names == (*opt.names, "4")


def test_a_model_is_freed_with_its_optimizer():
    """At once: a cycle would keep it until somebody collects garbage."""
    params = model()
    opt = Optimizer(params, "torch", lr=lambda t: 0.1)
    opt.step(gradients())
    kept = [weakref.ref(x) for x in (*params.values(), opt.state["w"]["exp_row"], opt)]
    del params, opt
    assert [ref() for ref in kept] == [None] * len(kept)


def test_deepcopy_with_its_params():
    params = model()
    opt = Optimizer(params, "numpy")
    twins, twin = copy.deepcopy((params, opt))
    twin.step(gradients())
    assert all(twin.params[name] is twins[name] for name in params)
    assert twins["w"].tobytes() != params["w"].tobytes()


PARAMS_REFUSED = [
    (np.ones((2, 3)), TypeError, "params is a ndarray, must be a mapping from names to arrays"),
    (None, TypeError, "params is a NoneType, must be a mapping from names to arrays, a sequence"),
    ("ab", TypeError, "params is a str, must be a mapping from names"),
    ((x for x in [np.ones(3)]), TypeError, "params is a generator, must be a mapping"),
    ({}, ValueError, "params is empty, must be"),
    ([], ValueError, "params is empty, must be"),
    ([1.0], TypeError, "params['0'] is a float, must be a numpy.ndarray"),
    ({"w": [1.0]}, TypeError, "params['w'] is a list, must be a numpy.ndarray"),
    ({1: np.ones(3)}, TypeError, "params has the name 1, must be a str"),
    ([np.ones(3), {"params": []}], TypeError, "params[1] is a dict, must be like params[0]"),
    ([{"lr": 0.1}], ValueError, "params[0]['params'] is missing, must be given"),
    ([{"params": 3.0}], TypeError, "params[0]['params'] is a float, must be a mapping"),
    ([{"params": [], "rl": 3}], TypeError, "params[0]['rl'] is unknown to convention 'numpy', did"),
    ([{"params": [], "lr": -3}], ValueError, "params[0]['lr'] is -3.0, must be a finite number"),
    (
        [{"params": [np.ones(3)]}, {"params": {"0": np.ones(3)}}],
        ValueError,
        "params['0'] is given twice, names must be unique",
    ),
    ({"w": np.ones(3, int)}, TypeError, "params['w'] has dtype int64, must be float16, bfloat16"),
    ({"w": np.ones(3, np.complex64)}, TypeError, "params['w'] has dtype complex64, must be"),
    ({"w": np.ones(3, ">f4")}, ValueError, "params['w'] has byte order '>', must be native"),
    ({"w": np.broadcast_to(1.0, 3)}, ValueError, "params['w'] is read-only, must be writeable"),
]


@pytest.mark.parametrize("params, error, text", PARAMS_REFUSED)
def test_params_refused(params, error, text):
    with pytest.raises(error, match="^" + re.escape(text)):
        Optimizer(params, "numpy")


def test_params_may_not_share_memory():
    base = np.ones((4, 5))
    with pytest.raises(ValueError, match=re.escape("params['b'] overlaps params['a'], must not")):
        Optimizer({"a": base[:3], "b": base[2:]}, "numpy")
    Optimizer({"a": base[:2], "b": base[2:]}, "numpy")


@pytest.mark.parametrize(
    "change, error, text",
    [
        (lambda g: g.pop("b"), ValueError, "grads has no 'b', must have every name; None leaves"),
        (lambda g: g.update(x=1), ValueError, "grads has 'x', must have names of params only"),
        (lambda g: g.update(b=[1.0] * 5), TypeError, "grads['b'] is a list, must be a numpy.ndarr"),
        (lambda g: g.update(b=np.ones(5, int)), TypeError, "grads['b'] has dtype int64, must be"),
        (lambda g: g.update(b=np.ones(6)), ValueError, "grads['b'] has shape (6,), must be (5,)"),
        (lambda g: g.update(b=np.ones(5, ">f8")), ValueError, "grads['b'] has byte order '>'"),
    ],
)
def test_gradients_refused(change, error, text):
    opt, grads = Optimizer(model(), "numpy"), gradients()
    opt.step(grads)
    change(grads)
    assert_refused(opt, error, text, grads)


def test_gradients_of_the_wrong_structure():
    opt = Optimizer(grouped(model()), "numpy")
    w, b, k, s = gradients().values()
    for grads, error, text in [
        (w, TypeError, "grads is a ndarray, must be a mapping from names to arrays, a list or a"),
        (None, TypeError, "grads is a NoneType, must be"),
        ((x for x in (w, b, k, s)), TypeError, "grads is a generator, must be"),
        ([w, b, k], ValueError, "grads has 3 gradients, must have 4"),
        ([], ValueError, "grads has 0 gradients, must have 4"),
        ([[w], [b], [s]], ValueError, "grads[1] has 1 gradients, must have 2"),
        (
            [{"w": w}, {"b": b, "2": k}, s],
            ValueError,
            "grads[1] has no '1', but 'b', must have every name",
        ),
        ([{"w": w, "v": w}, [b, k], s], ValueError, "grads[0] has 'v', must have names of params"),
    ]:
        assert_refused(opt, error, text, grads)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, "1", None])
def test_grad_scale_refused(scale):
    is_what = f"a {type(scale).__name__}" if scale in ("1", None) else scale
    error = TypeError if scale in ("1", None) else ValueError
    text = f"grad_scale is {is_what}, must be a finite number > 0"
    assert_refused(Optimizer(model(), "numpy"), error, text, gradients(), scale)


@pytest.mark.parametrize(
    "name, value, error, text",
    [
        ("nonfinite", "x", ValueError, "nonfinite is 'x', must be 'raise', 'skip' or 'propagate'"),
        ("atomic", True, ValueError, "atomic is True, must be 'all' or 'tensor'"),
        ("max_grad_norm", 0, ValueError, "max_grad_norm is 0.0, must be a number > 0 or None"),
        ("max_grad_norm", "1", TypeError, "max_grad_norm is a str, must be a number > 0 or None"),
        ("num_threads", 0, ValueError, "num_threads is 0, must be a positive int or None"),
    ],
)
def test_options_refused(name, value, error, text):
    with pytest.raises(error, match="^" + re.escape(text)):
        Optimizer(model(), "numpy", **{name: value})
    opt = Optimizer(model(), "numpy")
    before = getattr(opt, name)
    with pytest.raises(error, match="^" + re.escape(text)):
        setattr(opt, name, value)
    assert getattr(opt, name) == before


@pytest.mark.parametrize(
    "name",
    ["convention", "carry_param_rms", "param_groups", "names", "params", "state", "t", "skipped"],
)
def test_what_cannot_be_set(name):
    opt = Optimizer(model(), "numpy")
    with pytest.raises(AttributeError):
        setattr(opt, name, getattr(opt, name))


def test_repr_tells_what_it_is():
    opt = Optimizer(grouped(model()), "paper")
    opt.step(list(gradients().values()))
    assert repr(opt) == "<Optimizer(convention='paper'), groups=3, tensors=4, elements=50, t=1>"
