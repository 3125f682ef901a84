"""Every argument that is refused: the error, its text, and that nothing at all was changed."""

import functools
import mmap
import re

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import adafactor_native as an
from adafactor_native import Optimizer
from arrays import normal
from optimizers import KINDS, digest_of_model
from oracle.halves_reference import bfloat16, float16

SHAPE = (4, 5)


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def read_only_map(x):
    memory = mmap.mmap(-1, x.nbytes, prot=mmap.PROT_READ)
    return np.frombuffer(memory, x.dtype).reshape(x.shape)


# What is refused in place of the good array x
NO_ARRAYS = {
    "a list": lambda x: x.tolist(),
    "a NoneType": lambda x: None,
    "a float": lambda x: float(x[0, 0]),
    "a memoryview": memoryview,
    "a masked array": np.ma.array,
}
DTYPES = ["bool", "int8", "int32", "int64", "uint64", "uint16", "longdouble", "complex64"]
OTHER_DTYPES = ["complex128", "object", "<U32", "<M8[s]", "|V2", "|V4"]
SHAPES = [(), (3,), (5, 4), (4, 5, 1), (4, 1), (0, 5)]
READ_ONLY = {
    "array": read_only,
    "memory map": read_only_map,
    "broadcast": lambda x: np.broadcast_to(x[0], SHAPE),
}
OVERLAPPING_STRIDES = [(0, 4), (4, 0), (0, 0), (4, 4), (16, 4), (20, 3), (4, 12)]

# param and grad as parts of one base
OVERLAPS = [
    (np.s_[:4, :5], np.s_[:4, :5]),
    (np.s_[:4, :5], np.s_[3:7, :5]),
    (np.s_[:4, :5], np.s_[3:7, 4:9]),
    (np.s_[:8:2, ::2], np.s_[2::2, ::2]),
    (np.s_[3::-1, :5], np.s_[3:7, 4:9]),
]

OUT_OF_RANGE = [
    *[("lr", x, "a finite number >= 0") for x in (np.nan, np.inf, -np.inf, -1.0, -1e-300)],
    *[("eps", x, "a finite number >= 0") for x in (np.nan, np.inf, -1.0)],
    *[("beta2", x, "a number in [0, 1]") for x in (np.nan, np.inf, 1.5, -0.1, 1 + 1e-15)],
    *[("clip_threshold", x, "a number > 0 or None") for x in (np.nan, -np.inf, 0.0, -1.0)],
    *[("num_threads", x, "a positive int or None") for x in (0, -2, 2**31, 2**70)],
    *[("nonfinite", x, "'raise', 'skip' or 'propagate'") for x in ("x", "", "Raise")],
]
OF_WRONG_TYPE = [
    *[("lr", x, "a finite number >= 0") for x in ("0.1", b"1", None, [0.1], 1j)],
    *[("eps", x, "a finite number >= 0") for x in ("0.1", None)],
    *[("beta2", x, "a number in [0, 1]") for x in ("x", None, (0.5,))],
    *[("clip_threshold", x, "a number > 0 or None") for x in ("None", [1])],
    *[("scale_parameter", x, "a bool") for x in ("yes", None, 1, 0.0)],
    *[("carry_param_rms", x, "a bool") for x in ("no", None, 1)],
    *[("num_threads", x, "a positive int or None") for x in (1.5, "2", [2])],
]


@pytest.fixture
def step(kind):
    """A run with a step behind it, and a gradient."""
    run, grad = kind(normal(SHAPE, np.float32)), normal(SHAPE, np.float32, seed=1)
    run.step(grad)
    return run, grad


def assert_refused(run, take_step, error, text):
    """The step raises this error with this text and leaves every bit of everything as it was."""
    before, skipped = run.digest(), run.skipped
    with pytest.raises(error, match="^" + re.escape(text)) as caught:
        take_step()
    assert caught.type is error
    assert (run.digest(), run.skipped) == (before, skipped)


def assert_grad_refused(run, grad, error, text):
    before = grad.tobytes() if isinstance(grad, np.ndarray) else None
    assert_refused(run, lambda: run.step(grad), error, f"{run.grad_shown} {text}")
    assert before is None or grad.tobytes() == before


def assert_param_refused(run, param, grad, error, text):
    """By a step of an AdaFactor, by the constructor of an Optimizer."""
    before = param.tobytes() if isinstance(param, np.ndarray) else None
    take_step = functools.partial(run.step_another, param, grad)
    assert_refused(run, take_step, error, f"{run.param_shown} {text}")
    assert before is None or param.tobytes() == before


def assert_both_refused(step, make, error, text):
    """Neither in place of param nor in place of grad."""
    run, grad = step
    assert_param_refused(run, make(run.param), grad, error, text)
    assert_grad_refused(run, make(grad), error, text)


@pytest.mark.parametrize("nonfinite", ["raise", "skip", "propagate"])
@pytest.mark.parametrize("what", NO_ARRAYS)
def test_no_array(step, what, nonfinite):
    step[0].set(nonfinite=nonfinite)
    run, grad = step
    text = f"is {what}, must be a numpy.ndarray"
    assert_param_refused(run, NO_ARRAYS[what](run.param), grad, TypeError, text)
    if what == "a NoneType" and isinstance(run.opt, Optimizer):
        before = run.param.tobytes()
        run.step(None)  # leaves the tensor out
        assert run.param.tobytes() == before
    else:
        assert_grad_refused(run, NO_ARRAYS[what](grad), TypeError, text)


@pytest.mark.parametrize("dtype", [*DTYPES, *OTHER_DTYPES])
def test_dtype(step, dtype):
    text = f"has dtype {np.dtype(dtype)}, must be float16, bfloat16, float32 or float64"
    assert_both_refused(step, lambda x: np.zeros(SHAPE, dtype), TypeError, text)


@pytest.mark.parametrize("dtype", [">f4", ">f8"])
def test_byte_order(step, dtype):
    text = "has byte order '>', must be native"
    assert_both_refused(step, lambda x: x.astype(dtype), ValueError, text)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shape(step, shape):
    """Of grad, and of the array given to an AdaFactor; an Optimizer is made of any."""
    run, grad = step
    wrong, text = np.zeros(shape, np.float32), f"has shape {shape}, must be (4, 5)"
    assert_grad_refused(run, wrong, ValueError, text)
    if isinstance(run.opt, an.AdaFactor):
        assert_param_refused(run, wrong, grad, ValueError, text)


@pytest.mark.parametrize("what", READ_ONLY)
def test_read_only_param(step, what):
    run, grad = step
    text = "is read-only, must be writeable"
    assert_param_refused(run, READ_ONLY[what](run.param), grad, ValueError, text)


@pytest.mark.parametrize("strides", OVERLAPPING_STRIDES, ids=str)
def test_param_that_overlaps_itself(step, strides):
    run, grad = step
    text = "has elements that overlap each other"
    param = as_strided(run.param, SHAPE, strides)
    assert_param_refused(run, param, grad, ValueError, text)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("param_part, grad_part", OVERLAPS)
def test_param_and_grad_may_not_overlap(kind, param_part, grad_part, order):
    base = np.array(normal((10, 10)), order=order)
    run = kind(base[param_part])
    param, grad = re.escape(run.param_shown), re.escape(run.grad_shown)
    overlap = f"^({param} overlaps {grad}|{grad} overlaps {param}), must not share memory with it"
    with pytest.raises(ValueError, match=overlap):
        run.step(base[grad_part])
    assert np.array_equal(base, normal((10, 10))) and run.t == 0


@pytest.mark.parametrize("shape, name", [((6, 1), "exp_row"), ((1, 6), "exp_col"), ((6,), "v")])
def test_grad_may_not_be_the_state(shape, name, kind):
    run = kind(normal(shape))
    run.step(normal(shape, seed=1))
    state = run.state[name]
    overlap = f"^{re.escape(run.grad_shown)} overlaps .*{name}.*, must not share memory with it"
    for view in (state.reshape(shape), state[::-1].reshape(shape)):
        before = run.digest()
        with pytest.raises(ValueError, match=overlap):
            run.step(view)
        assert run.digest() == before


@pytest.mark.parametrize("shape, name", [((6, 1), "exp_row"), ((1, 6), "exp_col"), ((6,), "v")])
def test_param_may_not_be_the_state(shape, name):
    """Only an AdaFactor could be given it."""
    run = KINDS["AdaFactor"](normal(shape))
    run.step(normal(shape, seed=1))
    state = run.state[name]
    text = f"overlaps {name}, must not share memory with it"
    for view in (state.reshape(shape), state[::-1].reshape(shape)):
        assert_param_refused(run, view, normal(shape), ValueError, text)


@pytest.mark.parametrize(
    "name, value, must_be, error",
    [(*case, ValueError) for case in OUT_OF_RANGE] + [(*case, TypeError) for case in OF_WRONG_TYPE],
)
def test_hyper_parameters(kind, name, value, must_be, error):
    """When given and when set; what was there before stays."""
    accepts_more = {"lr": " or a callable of t", "eps": " or None"}
    if kind is KINDS["Optimizer"]:
        must_be += accepts_more.get(name, "")
        if name == "eps" and value is None:
            kind(normal(SHAPE), eps=None)  # the machine epsilon
            return
    is_what = f"an? {type(value).__name__}" if error is TypeError else re.escape(repr(value))
    text = f"^{name} is {is_what}, must be {re.escape(must_be)}$"
    with pytest.raises(error, match=text):
        kind(normal(SHAPE), **{name: value})

    run, grad = kind(normal(SHAPE)), normal(SHAPE, seed=1)
    run.step(grad)
    before = run.get(name)
    if not (name == "carry_param_rms" and kind is KINDS["Optimizer"]):  # there it is settled
        with pytest.raises(error, match=text):
            run.set(**{name: value})
    assert run.get(name) == before
    run.step(grad)
    assert run.t == 2


@pytest.mark.parametrize("number", [np.float32(0.5), np.int64(1), 1, np.array(0.5)], ids=repr)
def test_numbers_of_other_types_are_numbers(kind, number):
    names = ("lr", "beta2", "eps", "clip_threshold")
    run = kind(normal(SHAPE), **dict.fromkeys(names, number))
    assert [run.get(name) for name in names] == [float(number)] * 4
    assert kind(normal(SHAPE), num_threads=np.int64(3)).get("num_threads") == 3
    assert kind(normal(SHAPE), scale_parameter=np.bool_(False)).get("scale_parameter") is False


@pytest.mark.parametrize("shape", [5, 2.5, "ab", (2.5,), (3, None)], ids=repr)
def test_shape_of_the_wrong_type(shape):
    with pytest.raises(TypeError, match=re.escape(f"shape is {shape!r}, must be a")):
        an.AdaFactor(shape)


def test_shape_below_zero():
    with pytest.raises(ValueError, match=re.escape("shape is (-1, 3), must be a")):
        an.AdaFactor((-1, 3))


READ_ONLY_ATTRIBUTES = {
    "AdaFactor": ["shape", "factored", "exp_row", "exp_col", "v", "t", "skipped"],
    "Optimizer": [
        *("convention", "carry_param_rms", "param_groups", "names", "params", "state", "t"),
        "skipped",
    ],
}


@pytest.mark.parametrize(
    ("of", "name"), [(of, name) for of, names in READ_ONLY_ATTRIBUTES.items() for name in names]
)
def test_what_cannot_be_set(of, name):
    opt = KINDS[of](normal(SHAPE)).opt
    with pytest.raises(AttributeError):
        setattr(opt, name, getattr(opt, name))


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
    ((x for x in [np.ones(3)]), TypeError, "params is a generator, must be a mapping"),
    ({}, ValueError, "params is empty, must be"),
    ([], ValueError, "params is empty, must be"),
    ([1.0], TypeError, "params['0'] is a float, must be a numpy.ndarray"),
    ({"w": [1.0]}, TypeError, "params['w'] is a list, must be a numpy.ndarray"),
    ({1: np.ones(3)}, TypeError, "params has the name 1, must be a str"),
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
