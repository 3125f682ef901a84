"""A tensor without axes steps, and is stored, as one of a single element does: with the same bits.

NumPy makes scalars of arithmetic with arrays without axes, and NumPy 1 widens those where the other side is
an int or a float of Python's. Whatever is computed in Python, by whichever NumPy, must not show that.
"""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

from adafactor_native import AdaFactor, Optimizer, convert
from arrays import normal
from dlpack_bfloat16 import Bfloat16OfTorch

BF16 = np.dtype(ml_dtypes.bfloat16)
SETUPS = {
    "float64": (np.float64, {}),
    "float32": (np.float32, {"beta1": 0.9}),
    "float32, state of float32": (np.float32, {"state_dtype": "float32", "weight_decay": 0.1}),
    "float32, m of bfloat16": (np.float32, {"beta1": 0.9, "momentum_dtype": "bfloat16"}),
    "float32, copies": (np.float32, {"copies": BF16}),
    "float16": (np.float16, {"beta1": 0.5}),
    "float16, stochastic": (np.float16, {"rounding": "stochastic", "seed": 5}),
    "float16, masters": (np.float16, {"masters": "float32"}),
    "bfloat16, stochastic masters": (BF16, {"masters": "float32", "rounding": "stochastic"}),
    "bfloat16, m of bfloat16": (
        BF16,
        {"masters": "float32", "beta1": 0.9, "momentum_dtype": "bfloat16"},
    ),
    "bfloat16, split": (BF16, {"masters": "split", "beta1": 0.5}),
}
GRADIENTS = [np.float32, np.float64, np.float16, BF16]


def element(shape, dtype, seed):
    return normal((1,), np.float32, seed=seed).astype(dtype).reshape(shape)


def model(shape, setup, seed=0, **others):
    dtype, options = SETUPS[setup]
    options = {**options, **others}
    if "copies" in options:
        options["copies"] = {"s": np.zeros(shape, options["copies"])}
    return Optimizer({"s": element(shape, dtype, seed)}, lr=0.1, **options)


def steps(opt, times, dtype=np.float32):
    for t in times:
        opt.step({"s": element(opt.params["s"].shape, dtype, 100 + t)})
    return opt


def bits(opt):
    """Return all that is remembered, whatever its shape."""
    (tensor,) = opt.tensors
    arrays = {"param": tensor.param, "copy": tensor.copy, **tensor.state}
    kept = {kind: (x.dtype.name, x.tobytes()) for kind, x in arrays.items() if x is not None}
    return kept, opt.counts.tolist()


def stepped(shape, setup, dtype):
    return steps(model(shape, setup), range(4), dtype)


def accumulated(shape, setup, dtype):
    opt = steps(model(shape, setup), range(2))
    for i, micro in enumerate((dtype, BF16, np.float16, np.float32)):
        opt.accumulate({"s": element(shape, micro, 7 + i)})
    opt.step()
    return opt


def by_scalars(shape, setup, dtype):
    """NumPy's scalars are gradients of arrays without axes."""
    opt = model(shape, setup)
    for t in range(2):
        grad = element(shape, dtype, t)
        opt.step({"s": grad[()]})
        opt.accumulate({"s": grad[()]})
        opt.step()
    return opt


def ahead(shape, setup, dtype):
    opt = model(shape, setup)
    for t in range(3):
        opt.measure("s", element(shape, dtype, t))
        opt.step()
    opt.step_tensor("s", element(shape, dtype, 3))
    return opt


def overwritten(shape, setup, dtype):
    opt = steps(model(shape, setup), range(2), dtype)
    for seed in (50, 51):
        opt.params["s"][...] = element(shape, opt.params["s"].dtype, seed)
        opt.params_changed()
        steps(opt, [seed], dtype)
    return steps(opt, [5], dtype)


def overwritten_with_zero(shape, setup, dtype):
    """No zero and no infinity has a lower half, so a split master that has one is forgotten."""
    opt = steps(model(shape, setup, scale_parameter=False), range(2), dtype)
    opt.params["s"][...] = 0
    return steps(opt, [2, 3], dtype)


def replaced(shape, setup, dtype):
    opt = steps(model(shape, setup), range(2), dtype)
    same = opt.params["s"].copy()
    opt.replace("s", same)
    steps(opt, [2], dtype)
    opt.replace("s", element(shape, same.dtype, 60))
    return steps(opt, [3], dtype)


def reset(shape, setup, dtype):
    opt = steps(model(shape, setup), range(2), dtype)
    opt.reset("s")
    return steps(opt, [2], dtype)


def copied(shape, setup, dtype):
    opt = steps(model(shape, setup), range(2), dtype)
    return steps(pickle.loads(pickle.dumps(copy.deepcopy(opt))), [2], dtype)


def loaded(shape, setup, dtype):
    there = steps(model(shape, setup), range(2), dtype)
    here = model(shape, setup, seed=3)
    here.load_state_dict(there.state_dict(params=True))
    return steps(here, [2], dtype)


def loaded_in_part(shape, setup, dtype):
    there = steps(model(shape, setup), range(2), dtype)
    here = model(shape, setup)
    report = here.load_state_dict(there.state_dict(params=False), strict=False, rename=str)
    assert report.loaded == ("s",)
    return steps(here, [2], dtype)


WAYS = [
    stepped,
    accumulated,
    by_scalars,
    ahead,
    overwritten,
    overwritten_with_zero,
    replaced,
    reset,
    copied,
    loaded,
    loaded_in_part,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("setup", SETUPS)
def test_bits_are_those_of_one_element(setup, way):
    for dtype in GRADIENTS:
        assert bits(way((), setup, dtype)) == bits(way((1,), setup, dtype)), dtype


PAIRS = [
    ("float32", "float32, m of bfloat16"),
    ("float32, m of bfloat16", "float32"),
    ("float64", "float64"),
    ("float32", "float32, state of float32"),
    ("float32, state of float32", "float32"),
    ("float16", "float16, masters"),
    ("float16, masters", "float16"),
    ("bfloat16, split", "bfloat16, m of bfloat16"),
    ("bfloat16, m of bfloat16", "bfloat16, split"),
    ("bfloat16, stochastic masters", "bfloat16, split"),
]


@pytest.mark.parametrize("params", [False, True])
@pytest.mark.parametrize("there, here", PAIRS)
def test_states_are_converted_as_those_of_one_element(there, here, params):
    """The number of seeds has both halves of a bfloat16's lower bits, and a tie may come."""
    for seed in range(20):
        both = []
        for shape in ((), (1,)):
            old = steps(model(shape, there, seed), range(2))
            new = model(shape, here, seed)
            keep = ["weight_decay", "rounding", "seed"]
            new.load_state_dict(old.state_dict(params), convert=True, keep=keep)
            both.append(bits(steps(new, [2])))
        assert both[0] == both[1]


@pytest.mark.parametrize("masters", ["float32", "split"])
@pytest.mark.parametrize("low", [0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
def test_whole_numbers_of_halves_are_those_of_one_element(low, masters):
    """Lower halves at the edges, where one is carried into the upper."""
    other = {"float32": "split", "split": "float32"}[masters]
    both = []
    for shape in ((), (1,)):
        opt = Optimizer({"s": np.full(shape, 1.5, BF16)}, masters=masters)
        if masters == "split":
            opt.state["s"]["low"][...] = low
        else:
            whole = np.full((1,), 0x3FC00000 + low, np.uint32).view(np.float32)
            opt.state["s"]["master"][...] = whole.reshape(shape)
            opt.params["s"][...] = whole.astype(BF16).reshape(shape)
        new = Optimizer({"s": np.ones(shape, BF16)}, masters=other)
        new.load_state_dict(opt.state_dict(params=True), convert=True)
        (tensor,) = new.tensors
        both.append([tensor.param.tobytes(), *(x.tobytes() for x in tensor.state.values())])
    assert both[0] == both[1]


@pytest.mark.parametrize("library", ["torch", "huggingface", "optax"])
def test_states_of_other_libraries_are_those_of_one_element(library):
    both = []
    for shape in ((), (1,)):
        arguments = {"learning_rate": 0.1, "momentum": 0.9} if library == "optax" else {}
        there, here = (
            Optimizer({"s": element(shape, np.float32, 0)}, library, **arguments) for _ in range(2)
        )
        steps(there, range(2))
        if library == "optax":
            one, zeros = np.zeros(1, np.float32), np.zeros(shape, np.float32)
            factored = {"count": 0, "v_row": {"s": one}, "v_col": {"s": one}, "v": {"s": zeros}}
            state = convert.to_optax(there, [factored, {"count": 0, "ema": {"s": zeros}}])
        else:
            state = getattr(convert, f"to_{library}")(there)
        getattr(convert, f"load_{library}")(here, state)
        both.append((bits(there), bits(steps(here, [2]))))
    assert both[0] == both[1]


@pytest.mark.parametrize("state_dtype", ["float32", "float64"])
@pytest.mark.parametrize("dtype", GRADIENTS)
def test_adafactor_of_one_array(dtype, state_dtype):
    both = []
    for shape in ((), (1,)):
        opt = AdaFactor(shape, state_dtype=state_dtype)
        param = element(shape, np.float32, 0)
        for t in range(3):
            opt.update(param, element(shape, dtype, t))
        other = AdaFactor(shape)
        other.load_state_dict(opt.state_dict(), convert=True)
        other.update(param, element(shape, dtype, 3))
        both.append((param.tobytes(), opt.v.tobytes(), other.v.tobytes()))
    assert both[0] == both[1]


@pytest.mark.parametrize("has_array", [True, False])
def test_a_bfloat16_of_another_library(has_array):
    both = []
    for shape in ((), (1,)):
        opt = model(shape, "float32")
        grad = element(shape, BF16, 3).view(np.uint16)
        opt.step({"s": Bfloat16OfTorch(grad, has_array=has_array)})
        opt.accumulate({"s": Bfloat16OfTorch(grad, has_array=has_array)})
        opt.step()
        both.append(bits(opt))
    assert both[0] == both[1]
