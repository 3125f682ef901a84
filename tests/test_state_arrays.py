"""State arrays are public: what a user makes of one between steps is refused, or harmless."""

import copy

import numpy as np
import pytest

from adafactor_native import AdaFactor, Optimizer
from oracle.halves_reference import bfloat16

# Somebody might do it to an array all the same. NumPy 2.5 warns, older ones only for Fortran's order.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{begin}:DeprecationWarning")
    for begin in ("Setting the (shape|dtype)", "Changing the shape of an F-contiguous array")
]


def reshaped(array):
    array.shape = (*array.shape, 1)


def flat_or_deeper(array):
    array.shape = (1, array.size)


def resized(array):
    array.resize((3,), refcheck=False)


def grown(array):
    array.resize((array.size + 5,), refcheck=False)


def retyped(array):
    array.dtype = np.uint8


def swapped(array):
    array.dtype = array.dtype.newbyteorder()


def read_only(array):
    array.setflags(write=False)


CHANGES = [reshaped, flat_or_deeper, resized, grown, retyped, swapped, read_only]


def bits_of(arrays):
    return [array.tobytes() for array in arrays]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("shape", [(6, 4), (24,), (2, 3, 4), (300, 200)])
def test_one_array(shape, change):
    for kind in ("exp_row", "exp_col") if len(shape) == 2 else ("v",):
        param, grad = np.ones(shape, np.float32), np.full(shape, 0.5, np.float32)
        opt = AdaFactor(shape)
        opt.update(param, grad)
        before = param.copy()
        change(getattr(opt, kind))
        with pytest.raises(ValueError, match=f"^{kind} (has changed|is read-only)"):
            opt.update(param, grad)
        assert np.array_equal(param, before)
        assert opt.t == 1


SETUPS = {
    "float32": (np.float32, {}),
    "float64": (np.float64, {}),
    "float16, masters": (np.float16, {"masters": "float32"}),
    "bfloat16, masters": (bfloat16, {"masters": "float32"}),
    "bfloat16, split": (bfloat16, {"masters": "split"}),
    "bfloat16, m of bfloat16": (bfloat16, {"momentum_dtype": bfloat16}),
}


def model(setup, atomic="all"):
    dtype, switches = SETUPS[setup]
    params = {
        "w": np.ones((6, 4), dtype),
        "b": np.ones(24, dtype),
        "c": np.ones((3, 3, 4, 2), dtype),
        "f": np.asfortranarray(np.ones((40, 30), dtype)),
    }
    opt = Optimizer(params, lr=0.1, beta1=0.9, atomic=atomic, **switches)
    grads = {name: np.full(param.shape, 0.5, dtype) for name, param in params.items()}
    opt.step(grads)
    return opt, params, grads


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("setup", SETUPS)
def test_model(setup, change):
    """Every array of every kind, of the first tensor and the last: nothing of any is written."""
    state = model(setup)[0].state
    for name, kind in [(key, kind) for key in state for kind in state[key]]:
        opt, params, grads = model(setup, "tensor")
        array = opt.state[name][kind]
        before = bits_of(params.values())
        try:
            change(array)
        except (ValueError, AttributeError, TypeError):
            continue  # NumPy refuses to make that of this array
        with pytest.raises(ValueError, match=rf"^{kind}s\['{name}'\] (has changed|is read-only)"):
            opt.step(grads)
        assert bits_of(params.values()) == before
        assert opt.t == 1


def test_equal_dtype_is_no_change():
    opt, _, grads = model("float32")
    for array in opt.state["w"].values():
        array.dtype = np.dtype(array.dtype.str)
    assert opt.step(grads).stepped.all()


def test_there_and_back_is_no_change():
    opt, _, grads = model("float32")
    opt.state["w"]["exp_row"].shape = (3, 2)
    opt.state["w"]["exp_row"].shape = (6,)
    assert opt.step(grads).stepped.all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"_exp_row": np.zeros(3)},
        {"_exp_row": np.zeros((6, 1))},
        {"_exp_row": np.zeros(6, np.float32)},
        {"_exp_row": None},
        {"_exp_row": [0.0] * 6},
        {"_exp_col": None},
        {"_v": np.zeros((6, 4))},
        {"_exp_row": None, "_exp_col": None, "_v": np.zeros((6, 4))},
        {"_shape": (2, 3, 4)},
        {"_shape": ()},
        {"t": -1},
        {"t": 2**63},
        {"skipped": -1},
    ],
)
def test_unpickled(wrong):
    opt = AdaFactor((6, 4))
    param = np.ones((6, 4), np.float32)
    opt.update(param, param.copy())
    state = {**opt.__getstate__(), **wrong}
    other = AdaFactor.__new__(AdaFactor)
    with pytest.raises((TypeError, ValueError)):
        other.__setstate__(state)


def test_largest_count():
    """No count wraps: the step that would is refused, and the state can still be loaded."""
    opt = AdaFactor((2, 3))
    opt._tensors.set_counts(2**53 - 1, 0, [2**53 - 1])
    param = np.ones((2, 3))
    opt.update(param, np.ones((2, 3)))
    assert opt.t == 2**53
    before = param.copy()
    with pytest.raises(ValueError, match=r"2\*\*53"):
        opt.update(param, np.ones((2, 3)))
    assert np.array_equal(param, before)
    AdaFactor((2, 3)).load_state_dict(opt.state_dict())

    opt, params, grads = model("float32")
    opt._tensors.set_counts(2**53, 0, [2**53] * 4)
    before = bits_of(params.values())
    with pytest.raises(ValueError, match=r"2\*\*53"):
        opt.step(grads)
    assert bits_of(params.values()) == before
    assert opt.t == 2**53
    model("float32")[0].load_state_dict(opt.state_dict())


def test_copies_share_nothing():
    opt = AdaFactor((2, 3))
    assert not np.shares_memory(copy.copy(opt).exp_row, opt.exp_row)
