"""The nans that `nonfinite="propagate"` leaves have the same bits everywhere, and one sign."""

import numpy as np
import pytest

from adafactor_native import AdaFactor, Optimizer
from arrays import normal
from oracle.halves_reference import bfloat16

DTYPES = [np.dtype(name) for name in ("float16", "float32", "float64")] + [bfloat16]
SHAPES = {"matrix": (37, 29), "kernel": (12, 11, 3, 3), "vector": (1500,), "scalar": ()}
OPTIONS = {
    "plain": {},
    "decayed": {"weight_decay": 0.1, "scale_parameter": False},
    "beta1": {"beta1": 0.9, "weight_decay": 0.1},
    "unclipped": {"clip_threshold": None, "eps": 1e-3, "scale_parameter": False},
    "float32 state": {"state_dtype": "float32"},
    "stochastic": {"rounding": "stochastic"},
    "masters": {"masters": "float32", "beta1": 0.9},
    "clipped together": {"max_grad_norm": 1.0},
}


def sprinkled(values, seed, share=0.05):
    """Some of the values are infinite or nans, of either sign and any payload."""
    rng = np.random.default_rng(seed)
    bits = values.dtype.itemsize * 8
    unsigned = np.dtype(f"u{values.dtype.itemsize}")
    infinity = np.array(np.inf, values.dtype).view(unsigned)
    payload = rng.integers(0, 2 ** (9 if values.dtype == np.float16 else 6), values.shape)
    bad = (infinity | payload.astype(unsigned)) | (
        rng.integers(0, 2, values.shape).astype(unsigned) << unsigned.type(bits - 1)
    )
    is_bad = rng.random(values.shape) < share
    return np.where(is_bad, bad, values.view(unsigned)).view(values.dtype)


def bits_of_nans(array):
    """The bits of an array's nans, as a set."""
    array = np.ascontiguousarray(array)
    return set(array.view(f"u{array.itemsize}")[np.isnan(array)].tolist())


def assert_one_nan(array, what):
    canonical = bits_of_nans(np.array([np.nan], array.dtype))
    assert bits_of_nans(array) <= canonical, what


def arrays_of(opt):
    for name, param in opt.params.items():
        yield name, param
        for kind, state in opt.state[name].items():
            if state.dtype.kind != "u":
                yield f"{kind} of {name}", state


def numbers_of(report):
    names = ("rms_grad", "rms_u", "clip_divisor", "rms_param", "step_size")
    return [np.asarray(getattr(report, name)) for name in names] + [np.array(report.grad_norm)]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(n, d) for n in OPTIONS for d in DTYPES if n != "masters" or d.itemsize == 2],
    ids=str,
)
def test_one_nan_on_every_instruction_set(name, dtype, each_isa):
    found = {}
    for isa in each_isa():
        for threads in (1, 3):
            params = {
                shape: sprinkled(normal(SHAPES[shape], dtype, seed=k), k, share=0.02)
                for k, shape in enumerate(SHAPES)
            }
            opt = Optimizer(
                params,
                "numpy",
                factored_axes="last_two",
                nonfinite="propagate",
                num_threads=threads,
                **OPTIONS[name],
            )
            all_bytes = []
            for t in range(3):
                grads = {
                    shape: sprinkled(normal(SHAPES[shape], dtype, seed=10 + k), 100 * t + k)
                    for k, shape in enumerate(SHAPES)
                }
                with np.errstate(all="ignore"):
                    numbers = numbers_of(opt.step(grads))
                for what, array in [*arrays_of(opt), *(("report", x) for x in numbers)]:
                    assert_one_nan(array, (isa, what))
                    all_bytes.append(array.tobytes())
            found[isa, threads] = all_bytes
    assert all(each == found[isa, threads] for each in found.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_one_nan_of_one_array(shape, dtype, isa):
    param = sprinkled(normal(shape, dtype), 1)
    opt = AdaFactor(shape, nonfinite="propagate")
    with np.errstate(all="ignore"):
        for t in range(2):
            opt.update(param, sprinkled(normal(shape, dtype, seed=t), 5 + t))
    assert_one_nan(param, "param")
    for kind in ("exp_row", "exp_col", "v"):
        if getattr(opt, kind) is not None:
            assert_one_nan(getattr(opt, kind), kind)


def test_one_nan_where_no_gradient_is_at_fault():
    """Decay makes a nan of a param that is infinite."""
    for dtype in DTYPES:
        param = np.full((4, 5), np.inf, dtype)
        opt = Optimizer(
            [param],
            "numpy",
            scale_parameter=False,
            weight_decay=0.1,
            weight_decay_mode="alone",
            nonfinite="propagate",
        )
        opt.step([np.ones((4, 5), dtype)])
        assert np.isnan(param).all()
        assert_one_nan(param, dtype)


def test_strided_nans_are_made_one_and_what_lies_between_is_not_touched():
    base = np.full((40, 60), -np.nan, np.float32)
    before = base.copy()
    view = base[1::2, 2::3]
    view[...] = 1
    grad = np.ones(view.shape, np.float32)
    grad[3, 4] = -np.nan
    opt = Optimizer([view], "numpy", nonfinite="propagate", beta1=0.9)
    opt.step([grad])
    assert np.isnan(view).any()
    assert_one_nan(view, "view")
    view[...] = np.float32(-np.nan)
    assert base.tobytes() == before.tobytes()


@pytest.mark.parametrize("options", [{}, {"beta1": 0.9}, {"weight_decay": 0.1}], ids=str)
def test_a_fault_after_sound_steps_and_sound_steps_after_a_fault(options):
    """Sound steps are known by bounds and looked at no further; none is missed that is not."""
    for dtype in DTYPES:
        param = normal((40, 30), dtype)
        opt = Optimizer([param], "numpy", scale_parameter=False, nonfinite="propagate", **options)
        for t in range(24):
            grad = normal((40, 30), dtype, seed=t)
            if t in (3, 11):
                grad[t, 4] = -np.nan
            with np.errstate(all="ignore"):
                opt.step([grad])
            for what, array in arrays_of(opt):
                assert_one_nan(array, (t, what))
            if t == 6:
                for _, array in arrays_of(opt):
                    array[...] = np.where(np.isnan(array), 0, array)
            assert np.isnan(param).any() == (3 <= t < 6 or t >= 11), t
