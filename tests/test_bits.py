"""The same bits on every machine: runs whose hashes are kept in data/bits.json.

Other tests compare threads and instruction sets with each other on one machine. These hashes were
made on one with AVX-512; SSE2, AVX2, NEON, GCC and Clang have to give them too. When an order of
additions changes on purpose, write them anew: python tests/test_bits.py
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import adafactor_native as an

KEPT = Path(__file__).parent / "data" / "bits.json"
SHAPES = [(131, 77), (64, 3000), (2100, 5), (40, 50, 3), (5000,)]
DTYPES = ["float32", "float64"]
# Two sweeps; three; all sums in float64.
EPS = [1e-30, 1e-4, 1e-38]
STEPS = 4


def numbers(rng, shape, dtype, scale):
    """Fractions of integers, which every version of NumPy draws alike and every dtype holds."""
    return (rng.integers(-(2**20), 2**20, shape) * (scale / 2**20)).astype(dtype)


def digest_of_run(shape, param_dtype, grad_dtype, eps):
    rng = np.random.default_rng(0)
    param = numbers(rng, shape, param_dtype, 1.0)
    opt = an.AdaFactor(shape, eps=eps)
    for _ in range(STEPS):
        opt.update(param, numbers(rng, shape, grad_dtype, 2.0**-10))
    digest = hashlib.sha256(param.tobytes())
    for state in (opt.exp_row, opt.exp_col, opt.v):
        if state is not None:
            digest.update(state.tobytes())
    return digest.hexdigest()


def runs():
    return {
        f"{shape} {param_dtype} {grad_dtype} {eps}": (shape, param_dtype, grad_dtype, eps)
        for shape in SHAPES
        for param_dtype in DTYPES
        for grad_dtype in DTYPES
        for eps in EPS
    }


@pytest.mark.parametrize("run", runs())
def test_same_bits_as_ever(run, isa):
    assert digest_of_run(*runs()[run]) == json.loads(KEPT.read_text())[run]


if __name__ == "__main__":
    digests = {name: digest_of_run(*run) for name, run in runs().items()}
    KEPT.write_text(json.dumps(digests, indent=1) + "\n")
