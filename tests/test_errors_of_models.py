"""What a model refuses: the error, its text, and that nothing at all was changed."""

import json
import pickle
import re

import numpy as np
import pytest

from adafactor_native import Optimizer
from arrays import normal
from optimizers import digest_of_model
from oracle.halves_reference import bfloat16, float16


def new_params(dtype=np.float32, seed=0):
    shapes = {"w": (4, 5), "b": (5,), "k": (2, 3, 4), "s": ()}
    return {
        name: normal(shape, dtype, seed=seed + 10 * i)
        for i, (name, shape) in enumerate(shapes.items())
    }


def assert_step_refused(opt, error, text, *args):
    before = digest_of_model(opt)
    with pytest.raises(error, match="^" + re.escape(text)) as caught:
        opt.step(*args)
    assert caught.type is error
    assert digest_of_model(opt) == before


PARAMS_REFUSED = [
    (np.ones((2, 3)), TypeError, "params is a ndarray, must be a mapping from names to arrays"),
    (None, TypeError, "params is a NoneType, must be a mapping from names to arrays, a sequence"),
    ("ab", TypeError, "params is a str, must be a mapping from names"),
    ({1, 2}, TypeError, "params is a set, must be a mapping"),
    ({}, ValueError, "params is empty, must be"),
    ([], ValueError, "params is empty, must be"),
    ([1.0], TypeError, "params['0'] is a float, must be a numpy.ndarray"),
    ({"w": [1.0]}, TypeError, "params['w'] is a list, must be a numpy.ndarray"),
    ({1: np.ones(3)}, TypeError, "params has the name 1, must be a str"),
    (
        {"\ud800": np.ones(3)},
        ValueError,
        "params has the name '\\ud800', must be a str without lone",
    ),
    (
        {"a": {"\udfff": np.ones(3)}},
        ValueError,
        "params has the name 'a/\\udfff', must be a str wi",
    ),
    (
        [{"params": {"\ud8ab": np.ones(3)}}],
        ValueError,
        "params has the name '\\ud8ab', must be a str",
    ),
    ([np.ones(3), {"params": []}], TypeError, "params[1] is a dict, must be like params[0]"),
    ([{"lr": 0.1}], ValueError, "params[0]['params'] is missing, must be given"),
    ([{"params": 3.0}], TypeError, "params[0]['params'] is a float, must be a mapping"),
    ([{"params": [], "rl": 3}], TypeError, "params[0]['rl'] is unknown to convention "),
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
        Optimizer(params, convention="numpy")


def test_names_without_utf8_are_refused_wherever_they_come_from():
    opt = Optimizer({"w": np.ones(3)}, convention="numpy")
    opt.step({"w": np.ones(3)})
    before = digest_of_model(opt)
    bad = "\ud800"
    array = np.ones(3)
    state = opt.state_dict()
    header = json.loads(state["header"].tobytes())
    header["tensors"][0]["name"] = bad
    renamed = {
        **state,
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        f"v/{bad}": state["v/w"],
    }
    del renamed["v/w"]
    for call in (
        lambda: opt.add_param_group({"params": {bad: array}}),
        lambda: opt.add_param_group({"params": {"y": array}, "weight_decay_mask": [bad]}),
        lambda: opt.step({bad: array}),
        lambda: opt.step({"w": array, bad: array}),
        lambda: opt.accumulate({bad: array}),
        lambda: opt.replace(bad, array),
        lambda: opt.reset(bad),
        lambda: opt.load_state_dict(renamed),
        lambda: opt.load_state_dict(renamed, strict=False),
        lambda: opt.load_state_dict(state, rename={"w": bad}),
        lambda: opt.load_state_dict(state, rename={bad: "w"}),
        lambda: Optimizer({"w": array}, copies={bad: array}),
        lambda: Optimizer([{"params": {"w": array}}, {"match": bad}]),
    ):
        with pytest.raises(ValueError, match=r"\\ud800") as raised:
            call()
        assert type(raised.value) is ValueError
        assert digest_of_model(opt) == before
    (tensor,) = opt.tensors
    hostile = pickle.dumps(opt).replace(b"\x8c\x01w", b"\x8c\x03\xed\xa0\x80")
    with pytest.raises(ValueError, match=r"params has the name '.*ud800', must be a str"):
        pickle.loads(hostile)
    opt.load_state_dict(renamed, rename={bad: "w"})
    assert digest_of_model(opt) == before and tensor is opt.tensors[0]


def test_params_may_not_share_memory():
    base = np.ones((4, 5))
    with pytest.raises(ValueError, match=re.escape("params['b'] overlaps params['a'], must not")):
        Optimizer({"a": base[:3], "b": base[2:]}, convention="numpy")
    Optimizer({"a": base[:2], "b": base[2:]}, convention="numpy")


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
    opt, grads = Optimizer(new_params(), convention="numpy"), new_params(seed=1)
    opt.step(grads)
    change(grads)
    assert_step_refused(opt, error, text, grads)


def groups(params):
    w, b, k, s = params.values()
    return [{"params": {"w": w}}, {"params": [b, k], "lr": 0.5}, {"params": s, "eps": 1e-3}]


def test_gradients_of_the_wrong_structure():
    opt = Optimizer(groups(new_params()), convention="numpy")
    w, b, k, s = new_params(seed=1).values()
    for grads, error, text in [
        (w, TypeError, "grads is a ndarray, must be a mapping from names to arrays, a list or a"),
        (None, TypeError, "grads is a NoneType, must be"),
        ({"w", "b"}, TypeError, "grads is a set, must be"),
        ((x for x in (w, b, k)), ValueError, "grads has 3 gradients, must have 4"),
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
        assert_step_refused(opt, error, text, grads)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, "1", None])
def test_grad_scale_refused(scale):
    is_what = f"a {type(scale).__name__}" if scale in ("1", None) else scale
    error = TypeError if scale in ("1", None) else ValueError
    text = f"grad_scale is {is_what}, must be a finite number > 0"
    assert_step_refused(
        Optimizer(new_params(), convention="numpy"), error, text, new_params(seed=1), scale
    )


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
        Optimizer(new_params(), convention="numpy", **{name: value})
    opt = Optimizer(new_params(), convention="numpy")
    before = getattr(opt, name)
    with pytest.raises(error, match="^" + re.escape(text)):
        setattr(opt, name, value)
    assert getattr(opt, name) == before


HALVES_REFUSED = [
    (
        {"params": [np.ones(3, np.int16)]},
        TypeError,
        "params['0'] has dtype int16, must be float16, b",
    ),
    (
        {"params": [np.ones(3, "V2")]},
        TypeError,
        "params['0'] has dtype |V2, must be float16, bfloat",
    ),
    (
        {"params": [np.ones(3, float16)], "masters": "split"},
        TypeError,
        "masters is 'split', must be None or 'float32' for params['0'] of float16",
    ),
    (
        {"params": [np.ones(3, bfloat16)], "masters": "split", "rounding": "stochastic"},
        ValueError,
        "rounding is 'stochastic', must be 'nearest' with masters 'split'",
    ),
    (
        {"params": [np.ones(3)], "masters": "both"},
        ValueError,
        "masters is 'both', must be None, 'float32' or",
    ),
    (
        {"params": [np.ones(3)], "rounding": "up"},
        ValueError,
        "rounding is 'up', must be 'nearest' or",
    ),
    ({"params": [np.ones(3)], "seed": -1}, ValueError, "seed is -1, must be an int >= 0"),
    (
        {"params": [np.ones(3, float16)], "beta1": 0.9, "momentum_dtype": "float64"},
        TypeError,
        "momentum_dtype is float64, must be float32 or bfloat16 or None for params['0'] of float16",
    ),
    (
        {"params": [np.ones(3)], "beta1": 0.9, "momentum_dtype": "bfloat16"},
        TypeError,
        "momentum_dtype is bfloat16, must be float64 or None for params['0'] of float64",
    ),
    (
        {"params": [np.ones(3)], "copies": [np.ones(3, float16)]},
        TypeError,
        "params['0'] has dtype float64, must be float32 to have a copy",
    ),
    (
        {"params": [np.ones(3, np.float32)], "copies": [np.ones(3, np.float32)]},
        TypeError,
        "copies['0'] has dtype float32, must be float16 or bfloat16",
    ),
    (
        {"params": [np.ones(3, np.float32)], "copies": [np.ones(4, float16)]},
        ValueError,
        "copies['0'] has shape (4,), must be (3,)",
    ),
    (
        {"params": {"w": np.ones(3, np.float32)}, "copies": {"v": np.ones(3, float16)}},
        ValueError,
        "copies has 'v', must have names of its params only",
    ),
    (
        {"params": [np.ones(3, np.float32)], "copies": []},
        ValueError,
        "copies has 0 arrays, must have 1",
    ),
    (
        {"params": [{"params": [np.ones(3, np.float32)]}], "copies": []},
        TypeError,
        "copies must be None with groups",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "error", "text"), HALVES_REFUSED, ids=[e[2][:40] for e in HALVES_REFUSED]
)
def test_arguments_of_half_precision_refused(arguments, error, text):
    with pytest.raises(error) as caught:
        Optimizer(convention="numpy", **arguments)
    assert text in str(caught.value)


def test_copies_are_checked_as_params_are():
    param, copy = np.ones(8, np.float32), np.ones(8, float16)
    copy.flags.writeable = False
    with pytest.raises(ValueError, match=r"copies\['0'\] is read-only"):
        Optimizer([param], convention="numpy", copies=[copy])
    memory = np.zeros(32, np.uint8)
    with pytest.raises(ValueError, match=r"copies\['0'\] overlaps params\['0'\]"):
        Optimizer([memory.view(np.float32)], convention="numpy", copies=[memory.view(float16)[:8]])
    groups = [{"params": [np.ones(8, np.float32)], "copies": [np.zeros(8, bfloat16)]}]
    opt = Optimizer(groups, convention="numpy", lr=0.0)
    with pytest.raises(ValueError, match=r"grads\['0'\] overlaps copies\['0'\]"):
        opt.step([groups[0]["copies"][0]])
    opt.step([np.ones(8, float16)])
    assert np.all(groups[0]["copies"][0] == 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda param: setattr(param, "shape", (4, 6)),
        lambda param: setattr(param, "dtype", np.int32),
        lambda param: param.resize((2, 6), refcheck=False),
    ],
    ids=["shape", "dtype", "memory"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_param_that_became_another_array(change):
    params = {"a": np.ones((3, 4), np.float32), "b": np.ones((6, 4), np.float32)}
    opt = Optimizer(params, convention="numpy")
    change(params["b"])
    before = [param.copy() for param in params.values()]
    with pytest.raises((ValueError, TypeError), match=r"^params\['b'\] has "):
        opt.step({"a": np.ones((3, 4)), "b": np.ones((6, 4))})
    assert opt.t == 0
    for param, old in zip(params.values(), before):
        assert param.tobytes() == old.tobytes()


def test_a_param_that_became_read_only():
    params = {"a": np.ones((3, 4)), "b": np.ones(4)}
    opt = Optimizer(params, convention="numpy")
    params["b"].flags.writeable = False
    with pytest.raises(ValueError, match=r"^params\['b'\] is read-only, must be writeable$"):
        opt.step({"a": np.ones((3, 4)), "b": np.ones(4)})
    assert (params["a"] == 1).all()
