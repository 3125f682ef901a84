"""Gradients that are no arrays but become some: by NumPy's own protocol, or by DLPack."""

import ml_dtypes
import numpy as np
import pytest

from adafactor_native import AdaFactor, Optimizer

SHAPES = {"w": (4, 6), "b": (6,), "s": ()}
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


class ByArray:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class ByDLPack:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Unreadable:
    """As a tensor of torch is that requires grad, or lies on another device."""

    def __init__(self, error):
        self.error = error

    def __array__(self, dtype=None, copy=None):
        raise self.error


def arrays(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(rng.standard_normal(shape), np.float64).astype(dtype)
        for name, shape in SHAPES.items()
    }


def bits(opt):
    return {key: array.tobytes() for key, array in opt.state_dict(params=True).items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("foreign", [ByArray, ByDLPack])
def test_they_step_as_their_arrays_do(foreign, dtype):
    if foreign is ByDLPack and dtype is ml_dtypes.bfloat16:
        foreign = ByArray  # NumPy's DLPack has no bfloat16
    one, two = Optimizer(arrays(0)), Optimizer(arrays(0))
    for t in range(3):
        grads = arrays(1 + t, dtype)
        two.step(grads)
        some = {name: foreign(grad) if name != "b" else grad for name, grad in grads.items()}
        one.step(some if t else list(some.values()))
    assert bits(one) == bits(two)


@pytest.mark.parametrize("foreign", [ByArray, ByDLPack])
def test_an_array_of_one_does_too(foreign):
    param, other = np.ones((3, 2)), np.ones((3, 2))
    grad = np.arange(6.0).reshape(3, 2)
    AdaFactor((3, 2)).update(param, foreign(grad))
    AdaFactor((3, 2)).update(other, grad)
    assert param.tobytes() == other.tobytes()


@pytest.mark.parametrize("foreign", [ByArray, ByDLPack])
def test_their_memory_is_read_and_not_held(foreign):
    opt = Optimizer([np.ones(3)])
    with pytest.raises(ValueError, match=r"grads\['0'\] overlaps"):
        opt.step([foreign(opt.params["0"])])
    grad = np.ones(3)
    opt.step([foreign(grad)])
    grad.resize(5)  # refused while anybody refers to it


@pytest.mark.parametrize("foreign", [ByArray, ByDLPack])
def test_what_is_wrong_in_them_is_named(foreign):
    opt = Optimizer(arrays(0))
    before = bits(opt)
    grads = arrays(1)
    bad = grads["w"].copy()
    bad[2, 3] = np.nan
    for wrong, error, text in (
        (foreign(bad), FloatingPointError, r"grads\['w'\]\[2, 3\] is nan, must be finite"),
        (foreign(np.ones((4, 6), int)), TypeError, r"grads\['w'\] has dtype int64, must be float"),
        (foreign(np.ones(3)), ValueError, r"grads\['w'\] has shape \(3,\), must be \(4, 6\)"),
        (ByArray(np.ma.ones((4, 6))), TypeError, r"grads\['w'\] is a masked array"),
    ):
        with pytest.raises(error, match=text):
            opt.step({**grads, "w": wrong})
        assert bits(opt) == before


@pytest.mark.parametrize("error", [RuntimeError("requires grad"), TypeError("on cuda")])
def test_one_that_cannot_be_read_is_refused_with_the_remedy(error):
    opt = Optimizer(arrays(0))
    before = bits(opt)
    text = rf"grads\['s'\] is a Unreadable that NumPy cannot read \({error}\).*grad\.detach\(\)"
    with pytest.raises(TypeError, match=text) as raised:
        opt.step({**arrays(1), "s": Unreadable(error)})
    assert raised.value.__cause__ is error and bits(opt) == before
    with pytest.raises(TypeError, match="grad is a Unreadable that NumPy cannot read"):
        AdaFactor((3,)).update(np.ones(3), Unreadable(error))
    with pytest.raises(KeyboardInterrupt):
        opt.step({**arrays(1), "s": Unreadable(KeyboardInterrupt())})
    assert bits(opt) == before


def test_code_that_runs_meanwhile_cannot_take_memory_away():
    """All become arrays before the first is looked at."""
    opt = Optimizer([np.ones(3), np.ones(3)])
    first = np.ones(3)

    class Shrinks:
        def __array__(self, dtype=None, copy=None):
            first.resize((1,), refcheck=False)
            return np.ones(3)

    with pytest.raises(ValueError, match=r"grads\['0'\] has shape \(1,\)"):
        opt.step([first, Shrinks()])
    assert opt.t == 0


def test_params_stay_arrays_and_the_error_says_how_to_get_one():
    foreign = ByArray(np.ones(3))
    with pytest.raises(
        TypeError, match=r"params\['w'\] is a ByArray, must be a numpy.ndarray: numpy\.array\(p\)"
    ):
        Optimizer({"w": foreign})
    with pytest.raises(
        TypeError,
        match=r"param is a ByArray, must be a numpy.ndarray of its memory, as torch's p\.detach\(\)\.numpy\(\)",
    ):
        AdaFactor((3,)).update(foreign, np.ones(3))
