"""States that earlier versions saved load for ever, and continue as they would have."""

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from adafactor_native import Optimizer

DATA = Path(__file__).parent / "data"
SHAPES = {"w": (4, 5), "b": (5,), "k": (2, 3, 4)}

# How the optimizers of data/make_state_v1.py are made today; what a state has is not repeated.
CASES = {
    "default": (np.float32, {"convention": "numpy"}),
    "seed": (np.float64, {"convention": "numpy"}),
    "torch": (np.float32, {"convention": "torch"}),
    "huggingface": (
        np.float32,
        {"convention": "huggingface", "beta1": 0.9, "weight_decay_mask": ["w"]},
    ),
    "optax": (
        np.float32,
        {
            "convention": "optax",
            "learning_rate": lambda count: 0.5 / (count + 1),
            "min_dim_size_to_factor": 3,
            "momentum": 0.5,
        },
    ),
    "masters": (np.float16, {"convention": "numpy", "masters": "float32"}),
    "split": (
        ml_dtypes.bfloat16,
        {"convention": "numpy", "masters": "split", "beta1": 0.9, "momentum_dtype": "bfloat16"},
    ),
}


def kept(name):
    file = dict(np.load(DATA / f"state_v1_{name}.npz"))
    state = {key: array for key, array in file.items() if not key.startswith("expected/")}
    expected = {key[9:]: array for key, array in file.items() if key.startswith("expected/")}
    return state, expected


def optimizer(name, **changes):
    dtype, arguments = CASES[name]
    params = {tensor: np.zeros(shape, dtype) for tensor, shape in SHAPES.items()}
    return Optimizer(params, **{**arguments, **changes})


def gradients(t):
    rng = np.random.default_rng(t)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def test_there_is_a_file_of_each():
    assert {path.stem[9:] for path in DATA.glob("state_v1_*.npz")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_run_continues_with_the_same_bits_or_a_better_sum(name):
    state, expected = kept(name)
    opt = optimizer(name)
    opt.load_state_dict(state)
    assert opt.t == 2
    opt.step(gradients(3))
    after = opt.state_dict(params=True)
    assert after.keys() - {"header"} == expected.keys()
    for key, array in expected.items():
        if name == "masters" and key.startswith("param/"):
            # Rounded stochastically, by bits that were another function then: a neighbour of its
            # master, which has the same bits.
            master = expected["master" + key[5:]]
            assert (np.abs(after[key] - master) < np.spacing(np.abs(after[key]))).all()
            continue
        if name == "seed" and key.startswith("param/"):
            # RMS(u) and RMS(param) of float64 were summed in one word then, and are in two now.
            np.testing.assert_array_max_ulp(after[key], array, maxulp=2)
            continue
        assert after[key].tobytes() == array.tobytes(), key


def test_words_of_old_are_words_of_today():
    opt = optimizer("seed")
    opt.load_state_dict(kept("seed")[0])
    assert opt.convention == "numpy"
    assert opt.param_groups[0]["eps_mode"] == "both"
    assert opt.param_groups[0]["bias_correction"] is True


def test_a_state_of_the_old_default_names_its_convention():
    opt = optimizer("default", convention="paper")
    text = (
        "convention was 'numpy' when the state was saved, must be 'paper' as here: make the "
        "optimizer with convention='numpy', the default before version 0.2"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        opt.load_state_dict(kept("default")[0])


def test_a_switch_that_an_older_version_did_not_know_has_its_default():
    state, _ = kept("torch")
    header = json.loads(state["header"].tobytes())
    del header["groups"][0]["rounding"]
    state["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    opt = optimizer("torch", rounding="stochastic")
    opt.load_state_dict(state)
    assert opt.param_groups[0]["rounding"] == "nearest"
