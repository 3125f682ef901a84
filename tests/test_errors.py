"""Every argument that is refused: the error, its text, and that nothing at all was changed."""

import mmap
import re

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import adafactor_native as an
from problems import normal

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
def step():
    """An optimizer with a step behind it, its param and a gradient."""
    opt, param = an.AdaFactor(SHAPE), normal(SHAPE, np.float32)
    grad = normal(SHAPE, np.float32, seed=1)
    opt.update(param, grad)
    return opt, param, grad


def assert_refused(opt, param, grad, error, text):
    """update raises this error with this text and leaves every bit of everything as it was."""
    arrays = [
        x for x in (param, grad, opt.exp_row, opt.exp_col, opt.v) if isinstance(x, np.ndarray)
    ]
    before = [x.tobytes() for x in arrays]
    counts = opt.t, opt.skipped
    with pytest.raises(error, match="^" + re.escape(text)) as caught:
        opt.update(param, grad)
    assert caught.type is error
    assert [x.tobytes() for x in arrays] == before
    assert (opt.t, opt.skipped) == counts


def assert_both_refused(step, make, error, text):
    """Neither in place of param nor in place of grad."""
    opt, param, grad = step
    assert_refused(opt, make(param), grad, error, "param " + text)
    assert_refused(opt, param, make(grad), error, "grad " + text)


@pytest.mark.parametrize("nonfinite", ["raise", "skip", "propagate"])
@pytest.mark.parametrize("what", NO_ARRAYS)
def test_no_array(step, what, nonfinite):
    step[0].nonfinite = nonfinite
    assert_both_refused(step, NO_ARRAYS[what], TypeError, f"is {what}, must be a numpy.ndarray")


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
    text = f"has shape {shape}, must be (4, 5)"
    assert_both_refused(step, lambda x: np.zeros(shape, np.float32), ValueError, text)


@pytest.mark.parametrize("what", READ_ONLY)
def test_read_only_param(step, what):
    opt, param, grad = step
    text = "param is read-only, must be writeable"
    assert_refused(opt, READ_ONLY[what](param), grad, ValueError, text)


@pytest.mark.parametrize("strides", OVERLAPPING_STRIDES, ids=str)
def test_param_that_overlaps_itself(step, strides):
    opt, param, grad = step
    text = "param has elements that overlap each other"
    assert_refused(opt, as_strided(param, SHAPE, strides), grad, ValueError, text)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("param_part, grad_part", OVERLAPS)
def test_param_and_grad_may_not_overlap(step, param_part, grad_part, order):
    base = np.array(normal((10, 10)), order=order)
    text = "param overlaps grad, must not share memory with it"
    assert_refused(step[0], base[param_part], base[grad_part], ValueError, text)


@pytest.mark.parametrize("shape, name", [((6, 1), "exp_row"), ((1, 6), "exp_col"), ((6,), "v")])
def test_the_state_may_be_neither_param_nor_grad(shape, name):
    opt, good = an.AdaFactor(shape), normal(shape)
    opt.update(good, normal(shape, seed=1))
    state = getattr(opt, name)
    text = f"overlaps {name}, must not share memory with it"
    for view in (state.reshape(shape), state[::-1].reshape(shape)):
        assert_refused(opt, view, good, ValueError, "param " + text)
        assert_refused(opt, good, view, ValueError, "grad " + text)


@pytest.mark.parametrize(
    "name, value, must_be, error",
    [(*case, ValueError) for case in OUT_OF_RANGE] + [(*case, TypeError) for case in OF_WRONG_TYPE],
)
def test_hyper_parameters(step, name, value, must_be, error):
    """When given and when set; what was there before stays."""
    is_what = f"an? {type(value).__name__}" if error is TypeError else re.escape(repr(value))
    text = f"^{name} is {is_what}, must be {re.escape(must_be)}$"
    with pytest.raises(error, match=text):
        an.AdaFactor(SHAPE, **{name: value})

    opt, param, grad = step
    before = getattr(opt, name)
    with pytest.raises(error, match=text):
        setattr(opt, name, value)
    assert getattr(opt, name) == before
    opt.update(param, grad)
    assert opt.t == 2


@pytest.mark.parametrize("number", [np.float32(0.5), np.int64(1), 1, np.array(0.5)], ids=repr)
def test_numbers_of_other_types_are_numbers(number):
    opt = an.AdaFactor(SHAPE, lr=number, beta2=number, eps=number, clip_threshold=number)
    assert (opt.lr, opt.beta2, opt.eps, opt.clip_threshold) == (float(number),) * 4
    assert an.AdaFactor(SHAPE, num_threads=np.int64(3)).num_threads == 3
    assert an.AdaFactor(SHAPE, scale_parameter=np.bool_(False)).scale_parameter is False


@pytest.mark.parametrize("shape", [5, 2.5, "ab", (2.5,), (3, None)], ids=repr)
def test_shape_of_the_wrong_type(shape):
    with pytest.raises(TypeError, match=re.escape(f"shape is {shape!r}, must be a")):
        an.AdaFactor(shape)


def test_shape_below_zero():
    with pytest.raises(ValueError, match=re.escape("shape is (-1, 3), must be a")):
        an.AdaFactor((-1, 3))


@pytest.mark.parametrize("name", ["shape", "factored", "exp_row", "exp_col", "v", "t", "skipped"])
def test_what_cannot_be_set(step, name):
    opt, _, _ = step
    with pytest.raises(AttributeError):
        setattr(opt, name, getattr(opt, name))
