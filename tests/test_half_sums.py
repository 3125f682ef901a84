"""Sums depend on values, not on how they lie in memory: halves are added up as float32 is."""

import numpy as np
import pytest

from adafactor_native import Optimizer
from oracle.halves_reference import bfloat16, float16

SHAPES = [(131, 77), (64, 3000), (2100, 5), (9, 3, 3), (5000,)]
KINDS = {
    "bfloat16": (bfloat16, None),
    "bfloat16, split": (bfloat16, "split"),
    "float16": (float16, None),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eps", [1e-30, 1e-3, 1e-38], ids=["separable", "direct", "wide"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_report_and_means_of_halves_are_those_of_float32(shape, eps, kind):
    dtype, masters = KINDS[kind]
    rng = np.random.default_rng(0)
    halves, grad = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    floats = halves.astype(np.float32)
    switches = {"convention": "numpy", "factored_axes": "last_two", "eps": eps}
    of_halves = Optimizer({"w": halves}, masters=masters, **switches)
    of_floats = Optimizer({"w": floats}, **switches)
    report = of_halves.step({"w": grad}).as_dict()
    assert report == of_floats.step({"w": grad.astype(np.float32)}).as_dict()
    for kind_of_state, array in of_floats.state["w"].items():
        np.testing.assert_array_equal(of_halves.state["w"][kind_of_state], array)
