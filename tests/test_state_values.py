"""Values in state arrays that no gradient can have left there, and results beyond their dtype."""

import numpy as np
import pytest

from adafactor_native import AdaFactor, Optimizer
from oracle.halves_reference import bfloat16

BAD = [np.nan, np.inf, -np.inf, -1.0, -1e-30, 1e308]
SHAPES = {"w": (6, 4), "b": (24,), "c": (3, 3, 4, 2), "f": (400, 300), "one": (64, 5, 1, 1)}


def bits_of(opt):
    arrays = [*opt.params.values(), *(x for kinds in opt.state.values() for x in kinds.values())]
    return [array.tobytes() for array in arrays], opt.t, opt.counts.tolist()


def model(dtype=np.float32, **switches):
    params = {name: np.ones(shape, dtype) for name, shape in SHAPES.items()}
    opt = Optimizer(params, lr=0.1, **switches)
    grads = {name: np.full(shape, 0.5, dtype) for name, shape in SHAPES.items()}
    opt.step(grads)
    return opt, grads


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, bfloat16])
def test_second_moments(dtype, bad):
    """Each element of each array is looked at, and the array is named."""
    for name in SHAPES:
        for kind in ("exp_row", "exp_col", "v"):
            opt, grads = model(dtype)
            if kind not in opt.state[name]:
                continue
            array = opt.state[name][kind]
            for place in (0, array.size // 2, array.size - 1):
                kept = array.flat[place]
                array.flat[place] = bad
                before = bits_of(opt)
                with pytest.raises(FloatingPointError, match=f"^{kind} of '{name}' holds"):
                    opt.step(grads)
                assert bits_of(opt) == before
                array.flat[place] = kept
            assert opt.step(grads).stepped.all()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("shape", [(6, 4), (24,), (500, 200)])
def test_one_array(shape, bad):
    opt, param = AdaFactor(shape), np.ones(shape, np.float32)
    opt.update(param, param.copy())
    array = opt.exp_row if len(shape) == 2 else opt.v
    array[-1] = bad
    before = param.copy()
    with pytest.raises(FloatingPointError, match="holds"):
        opt.update(param, np.ones(shape, np.float32))
    assert np.array_equal(param, before)
    assert opt.t == 1


def test_negative_zero_is_zero():
    opt, param = AdaFactor((24,)), np.ones(24, np.float32)
    opt.v[3] = -0.0
    opt.update(param, param.copy())
    assert opt.t == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("dtype", "momentum_dtype"),
    [(np.float32, None), (np.float64, None), (np.float32, bfloat16), (bfloat16, bfloat16)],
)
def test_first_moment(dtype, momentum_dtype, bad):
    for name in SHAPES:
        opt, grads = model(dtype, beta1=0.9, momentum_dtype=momentum_dtype)
        array = opt.state[name]["m"]
        for place in (0, array.size // 2, array.size - 1):
            kept = array.flat[place]
            array.flat[place] = bad
            before = bits_of(opt)
            with pytest.raises(FloatingPointError, match=f"^m of '{name}' holds"):
                opt.step(grads)
            assert bits_of(opt) == before
            array.flat[place] = kept
        assert opt.step(grads).stepped.all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("scale_parameter", [True, False])
def test_masters(scale_parameter, bad):
    opt, grads = model(bfloat16, masters="float32", scale_parameter=scale_parameter)
    for name in SHAPES:
        array = opt.state[name]["master"]
        kept = array.flat[1]
        array.flat[1] = bad
        before = bits_of(opt)
        with pytest.raises(FloatingPointError, match=f"'{name}'"):
            opt.step(grads)
        assert bits_of(opt) == before
        array.flat[1] = kept


def test_skip_and_propagate():
    opt, grads = model(beta1=0.9, nonfinite="skip")
    opt.state["b"]["m"][0] = np.nan
    before = bits_of(opt)
    report = opt.step(grads)
    assert report.skipped
    assert bits_of(opt) == before
    opt, grads = model(beta1=0.9, nonfinite="propagate")
    opt.state["b"]["m"][0] = np.nan
    assert opt.step(grads).stepped.all()
    assert np.isnan(opt.params["b"][0])


# dtype, the largest number that is still far from infinity, one at the edge
EDGES = [
    (np.float16, 65000.0),
    (bfloat16, 3.38e38),
    (np.float32, 3.3e38),
    (np.float64, 1.79e308),
]


@pytest.mark.parametrize("how", ["plain", "momentum", "skip", "tensor", "clipped"])
@pytest.mark.parametrize("scale_parameter", [True, False])
@pytest.mark.parametrize(("dtype", "edge"), EDGES)
@pytest.mark.parametrize("shape", [(6, 4), (24,), (64, 3, 3, 3), (90, 80)])
def test_result_beyond_the_dtype(shape, dtype, edge, scale_parameter, how):
    """A finite gradient makes no parameter infinite: the step is refused before any write."""
    if scale_parameter and dtype == np.float64:
        return  # the squares overflow: refused for that already
    param = np.ones(shape, dtype)
    param.flat[::2] = edge
    lr = 1.0 if scale_parameter else edge / 4
    switches = {
        "plain": {},
        "momentum": {"beta1": 0.0},
        "skip": {"nonfinite": "skip"},
        "tensor": {"atomic": "tensor"},
        "clipped": {"max_grad_norm": 0.5},
    }[how]
    opt = Optimizer(
        {"w": param}, lr=lr, scale_parameter=scale_parameter, relative_step=False, **switches
    )
    grad = np.full(shape, -0.5, dtype)
    before = bits_of(opt)
    if how == "skip":
        assert opt.step([grad]).skipped
    else:
        with pytest.raises(FloatingPointError, match=r"params\['w'\] would make a finite number"):
            opt.step([grad])
    assert bits_of(opt) == before
    assert opt.step([-grad]).stepped.all()
    assert np.isfinite(param.astype(np.float64)).all()


@pytest.mark.parametrize("layout", ["C", "F", "strided"])
@pytest.mark.parametrize("setup", ["masters", "split", "copies", "stochastic"])
def test_halves_beyond_their_dtype(setup, layout):
    """Rounded copies and masters too, in any layout."""
    dtype, edge = (bfloat16, 3.38e38) if setup == "split" else (np.float16, 65000.0)
    made = np.float32 if setup == "copies" else dtype
    wide = np.ones((80, 90), made)
    param = {"C": wide, "F": np.asfortranarray(wide), "strided": np.ones((160, 180), made)}[layout]
    param = param[::2, ::2] if layout == "strided" else param
    param[7, 8] = edge
    copies = param.astype(np.float16) if setup == "copies" else None
    opt = Optimizer(
        {"w": param},
        lr=edge / 4,
        scale_parameter=False,
        relative_step=False,
        copies=None if copies is None else {"w": copies},
        masters={"masters": "float32", "split": "split"}.get(setup),
        rounding="stochastic" if setup == "stochastic" else "nearest",
    )
    before, kept = bits_of(opt), None if copies is None else copies.copy()
    with pytest.raises(FloatingPointError, match="would make a finite number infinite"):
        opt.step([np.full(param.shape, -0.5, made)])
    assert bits_of(opt) == before
    assert copies is None or np.array_equal(copies, kept)
    assert opt.step([np.full(param.shape, 0.5, made)]).stepped.all()


def test_first_moment_beyond_its_dtype():
    param = np.ones((6, 4), np.float32)
    opt = Optimizer({"w": param}, lr=1e38, scale_parameter=False, relative_step=False, beta1=0.9)
    opt.step([np.full((6, 4), 0.5, np.float32)])
    opt.state["w"]["m"][...] = 3.4e38
    opt.param_groups[0]["lr"] = 3.4e38
    before = bits_of(opt)
    with pytest.raises(FloatingPointError):
        opt.step([np.full((6, 4), 0.5, np.float32)])
    assert bits_of(opt) == before


def test_large_numbers_that_hardly_move():
    """At the edge of the dtype, what stays finite is stepped."""
    for dtype, edge in EDGES[:3]:
        param = np.full((40, 30), edge, dtype)
        opt = Optimizer({"w": param}, lr=1e-6, scale_parameter=False, relative_step=False)
        assert opt.step([np.full((40, 30), -0.5, dtype)]).stepped.all()
