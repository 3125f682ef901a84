"""What both classes refuse: the error, its text, and that nothing at all was changed."""

import functools
import mmap
import re

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import adafactor_native as an
from adafactor_native import Optimizer
from arrays import normal
from optimizers import KINDS

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
