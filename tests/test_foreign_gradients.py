"""Gradients that are no arrays but become some: by NumPy's own protocol, or by DLPack."""

import ml_dtypes
import numpy as np
import pytest

from adafactor_native import AdaFactor, Optimizer
from dlpack_bfloat16 import Bfloat16OfTorch

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


class WithDetach(ByArray):
    def detach(self):
        return self


@pytest.mark.parametrize(
    "foreign, remedy",
    [
        (ByArray, r": numpy\.array\(p\), .* jax's arrays are read-only"),
        (WithDetach, r" of its memory, as torch's p\.detach\(\)\.numpy\(\)"),
    ],
)
def test_params_stay_arrays_and_the_error_says_how_to_get_one(foreign, remedy):
    text = rf"is a {foreign.__name__}, must be a numpy.ndarray{remedy}$"
    with pytest.raises(TypeError, match=rf"^params\['w'\] {text}"):
        Optimizer({"w": foreign(np.ones(3))})
    with pytest.raises(TypeError, match=f"^param {text}"):
        AdaFactor((3,)).update(foreign(np.ones(3)), np.ones(3))


def layouts(array):
    yield array
    yield array.copy(order="F")
    if array.ndim == 2:
        yield np.repeat(array, 2, axis=1)[:, ::2]
        yield np.ascontiguousarray(array[::-1])[::-1]


@pytest.mark.parametrize("has_array", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_bfloat16_by_dlpack_is_read_exactly(name, has_array):
    # NumPy before 2.1 asks without options, as we do, and lets go of what it gets, unread.
    asked = 1 if has_array or np.lib.NumpyVersion(np.__version__) >= "2.1.0" else 2
    for seed in range(3):
        grad = arrays(seed, ml_dtypes.bfloat16)[name]
        for given in layouts(grad):
            foreign = Bfloat16OfTorch(given.view(np.uint16), has_array=has_array)
            one, two = Optimizer([np.ones(grad.shape)]), Optimizer([np.ones(grad.shape)])
            one.step([foreign])
            two.step([given])
            assert bits(one) == bits(two)
            assert foreign.given == asked and foreign.freed == 1
    foreign = Bfloat16OfTorch(grad.view(np.uint16), in_c_order=True, has_array=has_array)
    param, other = np.ones(grad.shape), np.ones(grad.shape)
    AdaFactor(grad.shape).update(param, foreign)
    AdaFactor(grad.shape).update(other, grad)
    assert param.tobytes() == other.tobytes() and foreign.freed == 1


def test_bfloat16_by_dlpack_is_named_where_it_is_wrong():
    opt = Optimizer(arrays(0))
    before = bits(opt)
    bad = arrays(1, ml_dtypes.bfloat16)["w"]
    bad[2, 3] = np.inf
    bad = bad.view(np.uint16)
    for wrong, error, text in (
        (Bfloat16OfTorch(bad), FloatingPointError, r"grads\['w'\]\[2, 3\] is inf, must be finite"),
        (
            Bfloat16OfTorch(bad[:2]),
            ValueError,
            r"grads\['w'\] has shape \(2, 6\), must be \(4, 6\)",
        ),
        (Bfloat16OfTorch(bad, device=2), TypeError, r"grads\['w'\] is a .* that NumPy cannot read"),
        (Bfloat16OfTorch(bad, lanes=2), TypeError, r"grads\['w'\] is a .* that NumPy cannot read"),
    ):
        with pytest.raises(error, match=text):
            opt.step({**arrays(1), "w": wrong})
        assert bits(opt) == before


def test_bfloat16_by_dlpack_needs_no_ml_dtypes(python):
    """It is read exactly, as float32, where nobody has installed ml_dtypes."""
    script = """
        import sys
        sys.modules["ml_dtypes"] = None  # as if it were not there
        import numpy as np
        from adafactor_native import Optimizer
        from dlpack_bfloat16 import Bfloat16OfTorch

        rng = np.random.default_rng(0)
        values = rng.standard_normal((4, 6)).astype(np.float32)
        bits = (values.view(np.uint32) >> 16).astype(np.uint16)
        for given in (bits, np.asfortranarray(bits), bits[::-1], bits[:, ::2], bits[0, 0]):
            given = np.asarray(given)
            exact = (given.astype(np.uint32) << 16).astype(np.uint32).view(np.float32)
            one, two = (Optimizer([np.ones(given.shape)]) for _ in range(2))
            foreign = Bfloat16OfTorch(given)
            one.step([foreign])
            two.step([exact])
            assert one.params["0"].tobytes() == two.params["0"].tobytes()
            assert foreign.freed == 1
        one.accumulate([Bfloat16OfTorch(given)])
        print("well")
    """
    assert python(script).strip() == "well"


@pytest.mark.parametrize("dtype", DTYPES)
def test_they_accumulate_as_their_arrays_do(dtype):
    one, two = Optimizer(arrays(0)), Optimizer(arrays(0))
    for seed in (1, 2):
        grads = arrays(seed, dtype)
        foreign = {name: ByArray(grad) for name, grad in grads.items()}
        if dtype is ml_dtypes.bfloat16:
            foreign["w"] = Bfloat16OfTorch(grads["w"].view(np.uint16))
        elif grads["w"].dtype.kind == "f":
            foreign["w"] = ByDLPack(grads["w"])
        one.accumulate(foreign)
        two.accumulate(grads)
    one.step()
    two.step()
    assert bits(one) == bits(two)
    with pytest.raises(TypeError, match=r"grads\['s'\] is a Unreadable that NumPy cannot read"):
        one.accumulate({**arrays(1), "s": Unreadable(RuntimeError("on cuda"))})
    assert bits(one) == bits(two) and one.memory.by_kind.get("sum") is None


def test_where_memory_runs_out_it_says_so():
    opt = Optimizer([np.ones(3)])
    with pytest.raises(MemoryError):
        opt.step([Unreadable(MemoryError())])
    assert opt.t == 0
