"""Whole models: how tensors, groups and gradients are given, what can be set, what a step reports."""

import math
import pickle
import re
from collections import OrderedDict, UserDict
from types import MappingProxyType

import numpy as np
import pytest

import adafactor_native as an
from adafactor_native import Optimizer
from arrays import normal

SHAPES = {"w": (4, 5), "b": (5,), "k": (2, 3, 4), "s": ()}


def new_params(dtype=np.float32, seed=0):
    """Return params by name: a matrix, a vector, a kernel and a scalar."""
    return {
        name: normal(shape, dtype, seed=seed + 10 * i)
        for i, (name, shape) in enumerate(SHAPES.items())
    }


def gradients(seed=1, dtype=np.float32):
    return new_params(dtype, seed=seed)


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
    one, other = (Optimizer(new_params(), convention) for _ in range(2))
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
    one, other = (Optimizer(grouped(new_params()), convention="numpy") for _ in range(2))
    for t in range(3):
        grads = gradients(t).values()
        one.step(list(grads))
        other.step(of_groups(*grads))
    assert bits(one) == bits(other)


def test_names():
    params = new_params()
    assert Optimizer(params, convention="numpy").names == ("w", "b", "k", "s")
    assert Optimizer(list(params.values()), convention="numpy").names == ("0", "1", "2", "3")
    opt = Optimizer(grouped(params), convention="numpy")
    assert opt.names == ("w", "1", "2", "3")
    assert [group["names"] for group in opt.param_groups] == [("w",), ("1", "2"), ("3",)]
    assert all(x is y for x, y in zip(opt.params.values(), params.values()))
    assert all(
        x is y for x, y in zip((x for g in opt.param_groups for x in g["params"]), params.values())
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_seed_convention_is_adafactor_bit_for_bit(dtype):
    params = new_params(dtype)
    opt = Optimizer(params, convention="numpy", lr=0.5, beta2=0.75, eps=1e-8, clip_threshold=0.5)
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
    params = new_params()
    opt = Optimizer(grouped(params), convention="numpy", lr=0.25)
    alone = [
        Optimizer({"w": params["w"].copy()}, convention="numpy", lr=0.25),
        Optimizer([params["b"].copy(), params["k"].copy()], convention="numpy", lr=0.5),
        Optimizer([params["s"].copy()], convention="numpy", lr=0.25, eps=1e-3),
    ]
    for t in range(3):
        w, b, k, s = gradients(t).values()
        opt.step([w, b, k, s])
        for single, grads in zip(alone, ([w], [b, k], [s])):
            single.step(grads)
    stepped = [x for single in alone for x in single.params.values()]
    assert [x.tobytes() for x in params.values()] == [x.tobytes() for x in stepped]


def test_none_leaves_a_tensor_out():
    params = new_params()
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
    opt = Optimizer(grouped(new_params()), convention="numpy")
    report = opt.step([None, [np.ones(5), None], np.ones(())])
    assert report.stepped.tolist() == [False, True, False, True]


def test_a_numpy_scalar_is_a_gradient_of_no_axes():
    one, other = (Optimizer(new_params(), convention="numpy") for _ in range(2))
    one.step(gradients())
    other.step({**gradients(), "s": np.float32(gradients()["s"])})
    assert bits(one) == bits(other)


def test_lr_is_called_with_t():
    asked = []

    def lr(t):
        asked.append(t)
        return 0.5 / t

    scheduled, by_hand = (
        Optimizer(new_params(), convention="numpy", lr=lr),
        Optimizer(new_params(), convention="numpy"),
    )
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

    opt = Optimizer(new_params(), convention, learning_rate=learning_rate)
    opt.step(gradients())
    opt.step(gradients())
    assert asked == [0, 1]


def test_what_a_schedule_returns_is_checked():
    opt = Optimizer(new_params(), convention="numpy", lr=lambda t: 0.1 if t == 1 else -1.0)
    opt.step(gradients())
    assert_refused(opt, ValueError, "lr(2) is -1.0, must be a finite number >= 0", gradients())
    opt = Optimizer(new_params(), convention="numpy", schedule=lambda t: None)
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
        Optimizer(
            {"w": param}, convention="numpy", **{"lr": lr, "weight_decay": wd, **hyper_parameters}
        ).step([zeros])
        np.testing.assert_allclose(param, 2.0 * keep, rtol=1e-15, err_msg=str(hyper_parameters))


def test_factored_axes_and_the_state_they_need():
    def kept(shape, **switches):
        state = Optimizer({"x": np.ones(shape)}, convention="numpy", **switches).state["x"]
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
        m = Optimizer([param], convention="numpy", beta1=0.9).state["0"]["m"]
        assert (m.shape, m.dtype, m.any()) == (param.shape, param.dtype, False)
        assert m.flags.f_contiguous == param.flags.f_contiguous


def test_memory():
    opt = Optimizer(new_params(), "torch", beta1=0.9)
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
    assert math.isnan(Optimizer([np.ones((0, 3))], convention="numpy").memory.per_element)


def test_report():
    params, grads = new_params(np.float64), gradients(dtype=np.float64)
    before = {name: x.copy() for name, x in params.items()}
    opt = Optimizer(params, convention="numpy", lr=0.5, beta2=0.0, clip_threshold=0.5)
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
    assert len(flat) == 6 + 5 * 4 and flat.pop("norm_limit") is None
    assert all(isinstance(x, (int, float)) for x in flat.values())
    assert "t=1" in repr(report) and "stepped=4 of 4" in repr(report)
    assert len(str(report).splitlines()) == 6 and "rms_grad" in str(report)
    assert repr(pickle.loads(pickle.dumps(report))) == repr(report)
    with pytest.raises(KeyError, match="nobody"):
        report["nobody"]


def test_a_printed_report_of_many_tensors_has_those_that_were_clipped():
    params = {f"x{i}": np.ones(3) for i in range(40)}
    grads = {name: np.ones(3) for name in params}
    opt = Optimizer(params, convention="numpy")
    opt.step(grads)
    text = str(opt.step({**grads, "x17": np.full(3, 1e3)}))
    assert re.search(r"^x17 ", text, re.MULTILINE) and len(text.splitlines()) < 20


def test_grad_scale_and_max_grad_norm():
    grads = gradients(dtype=np.float64)
    norm = math.sqrt(sum(np.square(x).sum() for x in grads.values()))
    clipped, scaled, by_hand = (Optimizer(new_params(np.float64), "torch") for _ in range(3))
    clipped.max_grad_norm = norm / 3
    report = clipped.step({name: x * 8 for name, x in grads.items()}, grad_scale=8.0)
    scaled.step({name: x * 1024 for name, x in grads.items()}, 3 * 1024)
    by_hand.step({name: x / 3 for name, x in grads.items()})
    assert report.grad_norm == pytest.approx(norm, rel=1e-12)
    for x, y, z in zip(*(opt.params.values() for opt in (clipped, scaled, by_hand))):
        np.testing.assert_allclose(y, z, rtol=1e-12)
        np.testing.assert_allclose(x, z, rtol=1e-5)


def test_add_param_group():
    params = new_params()
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
        ({"params": {"x": 1.0}}, TypeError, "params['x'] is a float, must be a numpy.ndarray"),
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
    opt = Optimizer(grouped(new_params()), convention="numpy")
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
    one = Optimizer(new_params(), convention="numpy", lr=0.5)
    one.step(gradients(1))
    one.param_groups[0]["lr"] = 0.25
    one.step(gradients(2))
    one.param_groups[0].update(beta2=0.5, clip_threshold=None, scale_parameter=False)
    one.max_grad_norm = 0.5
    one.step(gradients(3))

    other = Optimizer(new_params(), convention="numpy", lr=0.5)
    for t, changes in [
        (1, {}),
        (2, {"lr": 0.25}),
        (3, {"lr": 0.25, "beta2": 0.5, "clip_threshold": None, "scale_parameter": False}),
    ]:
        next_one = Optimizer(
            other.params, convention="numpy", max_grad_norm=0.5 if t == 3 else None, **changes
        )
        if t == 1:
            next_one.param_groups[0]["lr"] = 0.5
        for name, kinds in next_one.state.items():
            for kind, array in kinds.items():
                array[...] = other.state[name][kind]
        next_one._tensors.set_counts(other.t, 0, other.counts)
        next_one.step(gradients(t))
        other = next_one
    assert bits(one) == bits(other)


def test_repr_tells_what_it_is():
    opt = Optimizer(grouped(new_params()), "paper")
    opt.step(list(gradients().values()))
    assert repr(opt) == "<Optimizer(convention='paper'), groups=3, tensors=4, elements=50, t=1>"
