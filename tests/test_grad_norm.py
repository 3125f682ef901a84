"""The norm by which max_grad_norm clips is as exact as the most exact tensor that it scales."""

import numpy as np
import pytest

from adafactor_native import Optimizer
from arrays import normal
from buffers import LAYOUTS, Buffer
from oracle.halves_reference import bfloat16
from oracle.switches_reference import Run

FLOAT32 = {"large": (300, 257), "vector": (3001,), "kernel": (9, 8, 3, 3)}


def assert_float64_is_exact(params, steps, **options):
    """The tensors of float64 are the reference's, beside others, after steps that are clipped."""
    run = Run({name: param.copy() for name, param in params.items()}, lr=0.1, **options)
    opt = Optimizer(params, "numpy", lr=0.1, **options)
    for grads in steps:
        run.step({name: grad.array for name, grad in grads.items()})
        report = opt.step({name: grad.array for name, grad in grads.items()})
        squares = sum(np.sum(np.square(grad.array.astype(np.float64))) for grad in grads.values())
        assert report.grad_norm == pytest.approx(np.sqrt(squares), rel=1e-14)
    for name, param in params.items():
        if param.dtype == np.float64:
            np.testing.assert_allclose(param, run.params[name], rtol=1e-13, atol=0, err_msg=name)


@pytest.mark.parametrize("other", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_float64_beside_narrower_tensors(layout, other):
    dtype = bfloat16 if other == "bfloat16" else np.dtype(other)
    params = {name: normal(shape, dtype) for name, shape in FLOAT32.items()}
    params["exact"] = normal((40, 30))
    params["exact v"] = normal((70,))
    steps = [
        {
            name: Buffer(normal(param.shape, param.dtype, seed=9 * t + k, scale=t + 1.0), layout)
            for k, (name, param) in enumerate(params.items())
        }
        for t in range(4)
    ]
    assert_float64_is_exact(params, steps, max_grad_norm=2.0, beta2=0.5)


def test_a_float64_gradient_makes_its_tensor_exact():
    params = {"w": normal((300, 257), np.float32), "x": normal((40, 30), np.float32)}
    shapes = {name: param.shape for name, param in params.items()}
    grads = {"w": normal(shapes["w"], np.float32, seed=1), "x": normal(shapes["x"], seed=2)}
    opt = Optimizer(params, "numpy", max_grad_norm=1.0)
    norm = np.sqrt(sum(np.sum(np.square(grad.astype(np.float64))) for grad in grads.values()))
    assert opt.step(grads).grad_norm == pytest.approx(norm, rel=1e-14)
    scaled = grads["x"] / (norm + 1e-6)
    expected = 1e-3 * np.mean(np.square(scaled), axis=1) + 1e-33
    np.testing.assert_allclose(opt.state["x"]["exp_row"], expected, rtol=1e-13)


def test_the_same_bits_on_any_number_of_threads_by_any_way(each_isa):
    found = set()
    for _ in each_isa():
        for threads in (1, 2, 5):
            for way in ("step", "measure"):
                params = {name: normal(shape, np.float32) for name, shape in FLOAT32.items()}
                params["exact"] = normal((400, 300))
                opt = Optimizer(params, "numpy", max_grad_norm=1.0, num_threads=threads)
                for t in range(2):
                    grads = {
                        name: normal(param.shape, param.dtype, seed=t)
                        for name, param in params.items()
                    }
                    if way == "measure":
                        for name, grad in grads.items():
                            opt.measure(name, grad)
                        norm = opt.step().grad_norm
                    else:
                        norm = opt.step(grads, grad_scale=1.0).grad_norm
                found.add((norm, *(param.tobytes() for param in params.values())))
    assert len(found) == 1


def test_a_norm_that_does_not_clip_costs_no_sweep():
    """And a model of one width goes by the sums that it has."""
    grads = {name: normal(shape, np.float32, seed=1) for name, shape in FLOAT32.items()}
    norms = []
    for limit in (1.0, 1e9, None):
        params = {name: normal(shape, np.float32) for name, shape in FLOAT32.items()}
        opt = Optimizer(params, "numpy", max_grad_norm=limit)
        norms.append(opt.step(grads).grad_norm)
    assert norms[0] == norms[1] == norms[2]


KINDS = {"v": (70,), "matrix": (40, 30), "matrices": (3, 40, 50), "small": (30, 16, 3, 3)}


@pytest.mark.parametrize("nonfinite", ["raise", "propagate"])
@pytest.mark.parametrize("by", ["max_grad_norm", "a small max_grad_norm", "grad_scale"])
@pytest.mark.parametrize("eps_mode", ["grad_squared", "both", "clamp"])
@pytest.mark.parametrize("kind", KINDS)
def test_squares_that_only_scaled_gradients_have(kind, eps_mode, by, nonfinite):
    """Of u near 1e153 before it is scaled, and of the scale itself."""
    to = 1e-8 if by == "a small max_grad_norm" else 1.0
    settings = {"lr": 0.1, "beta2": 0.99999, "eps_mode": eps_mode, "eps": 1e-25}
    options = {} if by == "grad_scale" else {"max_grad_norm": to}
    params = {"w": normal(KINDS[kind])}
    run = Run({"w": params["w"].copy()}, **settings)
    opt = Optimizer(params, "numpy", nonfinite=nonfinite, **settings, **options)
    for t in range(3):
        grad = normal(KINDS[kind], seed=t + 1)
        size = 3e151 / np.linalg.norm(grad)
        before = params["w"].copy()
        run.step({"w": grad * (to / np.linalg.norm(grad))})
        report = opt.step({"w": grad * size}, grad_scale=3e151 if by == "grad_scale" else 1.0)
        assert report.stepped.all()
        assert report.grad_norm == pytest.approx(1 if by == "grad_scale" else 3e151, rel=1e-9)
        moved, expected = params["w"] - before, run.params["w"] - before
        np.testing.assert_allclose(moved, expected, rtol=1e-9, atol=1e-15)
    for name, mean in opt.state["w"].items():
        expected = getattr(run.states["w"], name).reshape(mean.shape)
        np.testing.assert_allclose(mean, expected, rtol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_float32_holds_what_scaled_gradients_make(kind):
    """Though not what they would make before they are scaled; without a clip, that is refused."""
    grad = normal(KINDS[kind], np.float32, seed=1) * np.float32(1e30)
    for limit in (1.0, 1e38):
        params = {"w": normal(KINDS[kind], np.float32)}
        before = params["w"].copy()
        opt = Optimizer(params, "numpy", state_dtype="float32", max_grad_norm=limit)
        if limit == 1.0:
            assert opt.step([grad]).stepped.all()
            assert np.isfinite(params["w"]).all() and not np.array_equal(params["w"], before)
        else:
            with pytest.raises(FloatingPointError, match="float32"):
                opt.step([grad])
            assert np.array_equal(params["w"], before)
