"""A first moment of bfloat16 is rounded as halves are: stochastically, it does not stall."""

import numpy as np
import pytest

from adafactor_native import Optimizer
from oracle.halves_reference import bfloat16

SHAPES = {"w": (24, 40), "b": (960,), "c": (64, 5, 3, 1)}


def run(rounding, steps, dtype=bfloat16, seed=0, momentum_dtype=bfloat16):
    params = {name: np.ones(shape, dtype) for name, shape in SHAPES.items()}
    opt = Optimizer(
        params,
        lr=1e-4,
        beta1=0.99,
        momentum_of="u",
        momentum_dtype=momentum_dtype,
        rounding=rounding,
        seed=seed,
    )
    grads = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    for _ in range(steps):
        opt.step(grads)
    return opt


@pytest.mark.parametrize("dtype", [np.float32, bfloat16, np.float16])
def test_mean_of_ones_becomes_one(dtype):
    """Rounded to the nearest it stops where a hundredth of the rest is less than half a unit."""
    moments = {name: state["m"] for name, state in run("stochastic", 1200, dtype).state.items()}
    stalled = {name: state["m"] for name, state in run("nearest", 1200, dtype).state.items()}
    for name in SHAPES:
        assert np.mean(moments[name].astype(np.float64)) == pytest.approx(1, abs=0.01)
        assert np.max(stalled[name].astype(np.float64)) < 0.85


def test_bits_are_functions_of_the_seed():
    first, same, other = (run("stochastic", 5, seed=seed) for seed in (1, 1, 2))
    for name in SHAPES:
        m = [opt.state[name]["m"].tobytes() for opt in (first, same, other)]
        assert m[0] == m[1] != m[2]


def test_bits_are_not_those_of_param():
    """One that holds the same numbers is not rounded to the same numbers."""
    opt = run("stochastic", 50, np.float32)
    half = run("stochastic", 50, bfloat16)
    for name in SHAPES:
        assert opt.state[name]["m"].tobytes() == half.state[name]["m"].tobytes()
        assert len(np.unique(half.state[name]["m"])) > 1
        m = half.state[name]["m"].astype(np.float32).ravel()
        param = half.params[name].astype(np.float32).ravel()
        if len(np.unique(param)) > 1:
            assert abs(np.corrcoef(m, param)[0, 1]) < 0.2
