"""Steps of half-precision arrays are the reference's, rounded once; what they keep, and refuse."""

import itertools

import numpy as np
import pytest

from adafactor_native import Optimizer
from arrays import normal
from buffers import LAYOUTS, Buffer
from compare import assert_state_close
from oracle import halves_reference as halves
from oracle import switches_reference
from oracle.convention_settings import SETTINGS
from oracle.halves_reference import bfloat16, float16

DTYPES = (float16, bfloat16, np.dtype(np.float32), np.dtype(np.float64))
PAIRS = [pair for pair in itertools.product(DTYPES, DTYPES) if any(map(halves.is_half, pair))]
SHAPES = {
    "matrix": (37, 29),
    "wide": (3, 2100),
    "tall": (700, 5),
    "vector": (2051,),
    "scalar": (),
    "kernel": (40, 9, 3, 3),
    "heads": (3, 20, 33),
    "empty": (0, 4),
}


def ulp(values, dtype):
    """The distance from each number of a dtype to the next one away from zero."""
    size = np.abs(np.asarray(values, np.float64))
    digits, smallest = {"bfloat16": (7, -133), "float16": (10, -24)}[dtype.name]
    return np.ldexp(1.0, np.maximum(np.frexp(size)[1] - 1 - digits, smallest))


def rounded_once(values, dtype):
    """Float64 values to the nearest half, ties to even."""
    unit = ulp(values, dtype)
    return np.rint(np.asarray(values, np.float64) / unit) * unit


def assert_rounded(param, expected):
    """Within one unit in the last place of the rounded truth, and almost always it."""
    unit = ulp(np.maximum(np.abs(expected), np.abs(param.astype(np.float64))), param.dtype)
    off = np.abs(param.astype(np.float64) - rounded_once(expected, param.dtype)) / unit
    assert np.max(off, initial=0) <= 1
    assert np.count_nonzero(off) <= max(1, 1e-3 * off.size)


def assert_param_matches(param, expected):
    if halves.is_half(param.dtype):
        assert_rounded(param, expected)
    else:
        eps = np.finfo(param.dtype).eps if param.dtype == np.float32 else 1e-12
        np.testing.assert_allclose(
            param, expected, 8 * eps, 8 * eps * np.max(np.abs(expected), initial=0)
        )


@pytest.mark.parametrize("factored_axes", ["matrix", "last_two"])
@pytest.mark.parametrize(("p", "g"), PAIRS, ids=lambda dtype: dtype.name)
def test_every_pair_of_dtypes(p, g, factored_axes):
    params = {name: normal(shape, p, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}
    opt = Optimizer(params, convention="numpy", lr=0.1, factored_axes=factored_axes)
    states = {name: switches_reference.State() for name in params}
    for t in range(1, 4):
        grads = {name: normal(shape, g, seed=10 * t + len(name)) for name, shape in SHAPES.items()}
        before = {name: param.copy() for name, param in params.items()}
        opt.step(grads)
        for name, param in params.items():
            expected, states[name] = switches_reference.step(
                before[name], grads[name], states[name], t=t, lr=0.1, factored_axes=factored_axes
            )
            assert_param_matches(param, expected)


@pytest.mark.parametrize("dtype", halves.HALVES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(45, 70), (33, 5, 7), (1500,)], ids=str)
def test_every_layout(dtype, layout, shape):
    values, slope = normal(shape, dtype), normal(shape, dtype, seed=1)
    param, grad, copy = Buffer(values, layout), Buffer(slope, layout), Buffer(slope, layout)
    master = Buffer(values.astype(np.float32), "C" if layout == "Fortran" else "Fortran")
    expected, _ = switches_reference.step(values, slope, switches_reference.State(), lr=0.3)
    Optimizer([param.array], convention="numpy", lr=0.3).step([grad.array])
    Optimizer([master.array], convention="numpy", copies=[copy.array], lr=0.3).step([grad.array])
    assert_rounded(param.array, expected)
    assert np.array_equal(copy.array, halves.nearest(master.array, dtype))
    for buffer in (param, grad, copy, master):
        buffer.assert_guards_intact()


@pytest.mark.parametrize("layout", ["C", "Fortran", "both steps", "misaligned", "record field"])
def test_split_masters_of_every_layout(layout):
    values, slope = normal((45, 70), bfloat16), normal((45, 70), bfloat16, seed=1)
    param = Buffer(values, layout)
    twin = Buffer(values.astype(np.float32), layout)
    opt = Optimizer([param.array], convention="numpy", lr=0.3, masters="split")
    other = Optimizer([twin.array], convention="numpy", lr=0.3)
    for _ in range(3):
        opt.step([slope])
        other.step([slope])
    word = np.ascontiguousarray(twin.array).view(np.uint32)
    assert np.array_equal(halves.bits(param.array), ((word + 0x8000) >> 16).astype(np.uint16))
    assert np.array_equal(opt.state["0"]["low"], word.astype(np.uint16))
    param.assert_guards_intact()


# What each convention is given besides its defaults
ARGUMENTS = {
    "numpy": {"beta1": 0.9, "weight_decay": 0.1},
    "paper": {"beta1": 0.9},
    "huggingface": {"weight_decay": 0.1},
    "torch": {"weight_decay": 0.1},
    "optax": {"learning_rate": 0.1, "min_dim_size_to_factor": 4, "momentum": 0.5},
    "keras": {"learning_rate": 0.1},
    "t5x": {"learning_rate": 0.1, "min_dim_size_to_factor": 3},
    "big_vision": {"lr": 0.1, "wd": 0.1, "min_dim_size_to_factor": 4},
}


@pytest.mark.parametrize("dtype", halves.HALVES, ids=str)
@pytest.mark.parametrize("convention", SETTINGS)
def test_every_convention(convention, dtype):
    """Each step from the same stored numbers; the state follows from the gradients alone."""
    switches = SETTINGS[convention](**ARGUMENTS[convention])
    if switches.get("eps", 0) is None:
        switches["eps"] = float(np.finfo(np.float32).eps)
    params = {k: normal(shape, dtype, seed=i) for i, (k, shape) in enumerate(SHAPES.items())}
    opt = Optimizer(params, convention, **ARGUMENTS[convention])
    run = switches_reference.Run(params, **switches)
    for t in range(1, 4):
        for k, param in params.items():
            run.params[k] = param.astype(np.float64)
        grads = {k: normal(shape, dtype, seed=10 * t + len(k)) for k, shape in SHAPES.items()}
        opt.step(grads)
        run.step(grads)
        for k, param in params.items():
            assert_rounded(param, run.params[k])
            if param.size:
                assert_state_close(opt.state[k], run.state(k), 2e-5)


def numbers(shape, axes):
    """The number of each element in the order that random bits are counted by: that of memory, with
    every run of a matrix, or of a thousand elements of small ones, beginning at a multiple of 64."""

    def up(n):
        return -(-n // 64) * 64

    n = int(np.prod(shape))
    if (axes == "matrix" and len(shape) != 2) or len(shape) < 2:
        return np.arange(n).reshape(shape)
    rows, cols = shape[-2:]
    matrices = n // (rows * cols)
    if rows * cols <= 256 and matrices >= 8:
        at_once = rows * cols * 8 * max(1024 // (rows * cols * 8), 1)
        element = np.arange(n)
        return (element // at_once * up(at_once) + element % at_once).reshape(shape)
    run = np.arange(matrices * rows)[:, None]
    return (run * up(cols) + np.arange(cols)).reshape(shape)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", halves.HALVES, ids=str)
@pytest.mark.parametrize("factored_axes", ["matrix", "last_two"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_stochastic_steps_are_float32_steps_rounded_by_the_references_bits(
    decay, factored_axes, dtype
):
    shapes = [shape for shape in SHAPES.values() if 0 not in shape]
    params = [normal(shape, dtype, seed=i) for i, shape in enumerate(shapes)]
    floats = [param.astype(np.float32) for param in params]
    copies = [np.zeros(shape, dtype) for shape in shapes]
    options = {"lr": 0.1, "factored_axes": factored_axes, "weight_decay": decay}
    opt = Optimizer(params, convention="numpy", rounding="stochastic", seed=6, **options)
    copying = Optimizer(
        floats, convention="numpy", copies=copies, rounding="stochastic", seed=6, **options
    )
    for t in (1, 2):
        for param, values in zip(params, floats):
            values[...] = param
        grads = [normal(shape, dtype, seed=10 * t + k) for k, shape in enumerate(shapes)]
        opt.step(grads)
        copying.step(grads)
        for k, shape in enumerate(shapes):
            number = numbers(shape, factored_axes)
            words = halves.random_words(6, t, str(k), int(number.max()) + 1)[number]
            expected = halves.bits(halves.stochastic(floats[k], dtype, words))
            assert np.array_equal(halves.bits(params[k]), expected), shape
            assert np.array_equal(halves.bits(copies[k]), expected), shape


@pytest.mark.parametrize("dtype", halves.HALVES, ids=str)
@pytest.mark.parametrize("factored_axes", ["matrix", "last_two"])
def test_masters_are_float32_params(factored_axes, dtype):
    params = {name: normal(shape, dtype, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}
    twins = {name: param.astype(np.float32) for name, param in params.items()}
    options = {"lr": 1e-4, "beta1": 0.9, "factored_axes": factored_axes}
    opt = Optimizer(params, convention="numpy", masters="float32", **options)
    other = Optimizer(twins, convention="numpy", **options)
    for t in range(5):
        grads = {name: normal(shape, dtype, seed=t) for name, shape in SHAPES.items()}
        opt.step(grads)
        other.step(grads)
    for name, param in params.items():
        assert np.array_equal(opt.state[name]["master"], twins[name])
        assert np.array_equal(halves.bits(param), halves.bits(halves.nearest(twins[name], dtype)))


def test_masters_follow_params_that_changed():
    for masters in ("float32", "split"):
        param = normal((6, 5), bfloat16)
        opt = Optimizer([param], convention="numpy", masters=masters, lr=0.1)
        opt.step([normal((6, 5), bfloat16, seed=1)])
        param[...] = 2
        opt.params_changed()
        kept = opt.state["0"]
        if masters == "split":
            assert not kept["low"].any()
        else:
            assert np.all(kept["master"] == 2)


@pytest.mark.parametrize("dtype", halves.HALVES, ids=str)
def test_first_moment_in_bfloat16_is_rounded_once(dtype):
    shape = (20, 30)
    param, beta1 = normal(shape, dtype), 0.9
    opt = Optimizer([param], convention="numpy", lr=0.1, beta1=beta1, momentum_dtype="bfloat16")
    plain = Optimizer([param.copy()], convention="numpy", lr=0.1, beta1=beta1)
    assert opt.memory.by_kind["m"] * 2 == plain.memory.by_kind["m"]
    m = opt.state["0"]["m"]
    assert m.dtype == bfloat16
    state = switches_reference.State()
    for t in range(1, 4):
        grad = normal(shape, dtype, seed=t)
        state = switches_reference.State(state.exp_row, state.exp_col, None, m.astype(np.float64))
        expected, state = switches_reference.step(param, grad, state, t=t, lr=0.1, beta1=beta1)
        opt.step([grad])
        assert_rounded(m, state.m)
        assert_rounded(param, expected)


@pytest.mark.parametrize("eps", [0.0, 1e-30])
@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize("shape", [(20, 30), (6, 2100), (50, 3, 3)], ids=str)
def test_squares_that_leave_float32(shape, size, eps):
    grad = (normal(shape) * size).astype(bfloat16)
    param = normal(shape, bfloat16)
    options = {"lr": 0.1, "eps": eps, "factored_axes": "last_two"}
    expected, _ = switches_reference.step(param, grad, switches_reference.State(), **options)
    Optimizer([param], convention="numpy", **options).step([grad])
    assert_rounded(param, expected)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", halves.HALVES, ids=str)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("layout", ["C", "column slice", "Fortran", "misaligned"])
def test_large_copies(layout, rounding, dtype):
    """Rows whose ends no vector fits, at any alignment."""
    shape = (1030, 1041)
    param = normal(shape, np.float32)
    copy = Buffer(np.zeros(shape, dtype), layout)
    grad = normal(shape, dtype, seed=1)
    Optimizer([param], convention="numpy", copies=[copy.array], lr=0.1, rounding=rounding).step(
        [grad]
    )
    copy.assert_guards_intact()
    if rounding == "nearest":
        assert np.array_equal(copy.array, halves.nearest(param, dtype))
        return
    words = halves.random_words(0, 1, "0", 1030 * 1088).reshape(1030, 1088)[:, :1041]
    assert np.array_equal(copy.array, halves.stochastic(param, dtype, words))


def test_a_scalar_of_bfloat16_is_a_gradient():
    param = np.ones((), bfloat16)
    Optimizer([param], convention="numpy", lr=0.5).step([np.ones((), bfloat16)[()]])
    assert param == bfloat16.type(0.5)


def test_ml_dtypes_is_not_imported(python):
    """float16 needs nothing; bfloat16 by name says what it needs."""
    python(
        """
        import sys
        import numpy as np
        from adafactor_native import Optimizer

        param = np.ones((4, 3), np.float16)
        opt = Optimizer([param], "numpy", masters="float32", rounding="stochastic")
        opt.step([param.copy()])
        assert "ml_dtypes" not in sys.modules
        sys.modules["ml_dtypes"] = None
        try:
            Optimizer([param], "numpy", beta1=0.9, momentum_dtype="bfloat16")
        except ModuleNotFoundError as error:
            assert "momentum_dtype is 'bfloat16', which needs the package ml_dtypes" in str(error)
        else:
            raise AssertionError
        """
    )
