"""Writes data/golden.json: a few short runs, as the reference computes them.

Run it by hand, python tests/golden.py, when a formula has changed on purpose.
"""

import json
from pathlib import Path

import numpy as np

from oracle import array_reference

KEPT = Path(__file__).parent / "data" / "golden.json"
STEPS = 3
SETTINGS = [
    {},
    {"lr": 0.5, "beta2": 0.9, "eps": 1e-3, "clip_threshold": 0.5, "scale_parameter": False},
    {"lr": 0.25, "beta2": 0.0, "eps": 1e-8, "clip_threshold": None},
]


def numbers(shape, seed):
    """Normal numbers rounded to multiples of 1/64, which float32 holds too."""
    draw = np.random.default_rng(seed).standard_normal(shape)
    return np.round(draw * 64) / 64


def make_runs():
    """Return the runs: what goes in, and what comes out after the last step."""
    runs = []
    for shape in ((), (5,), (3, 4), (1, 3), (2, 3, 2)):
        for hyper in SETTINGS:
            start = param = numbers(shape, seed=0)
            grads = [numbers(shape, seed) for seed in range(1, STEPS + 1)]
            state = array_reference.initial_state(shape)
            for grad in grads:
                param, state = array_reference.update(param, grad, state, **hyper)
            out = {"param": param, "exp_row": state.exp_row, "exp_col": state.exp_col, "v": state.v}
            runs.append(
                {
                    "hyper": hyper,
                    "param": start.tolist(),
                    "grads": [grad.tolist() for grad in grads],
                    "after": {k: None if x is None else x.tolist() for k, x in out.items()},
                }
            )
    return runs


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(run) for run in make_runs())
    KEPT.write_text(f"[\n{lines}\n]\n")
