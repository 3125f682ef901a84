"""Makes the states of format version 1 that every later version must load: state_v1_*.npz.

Run with adafactor_native 0.1.0, whose defaults and words they keep:
`python tests/data/make_state_v1.py`

A file has a whole state_dict after two steps, parameters included, and under "expected/" the
parameters after a third.
"""

import pathlib

import ml_dtypes
import numpy as np

import adafactor_native as an

HERE = pathlib.Path(__file__).parent
SHAPES = {"w": (4, 5), "b": (5,), "k": (2, 3, 4)}

# A dtype of the parameters, and the arguments of Optimizer as version 0.1.0 took them
CASES = {
    "default": (np.float32, {"lr": 0.5}),
    "seed": (np.float64, {"convention": "numpy", "eps_mode": "seed", "bias_correction": True}),
    "torch": (np.float32, {"convention": "torch", "lr": 0.1, "max_grad_norm": 1.5}),
    "huggingface": (
        np.float32,
        {
            "convention": "huggingface",
            "beta1": 0.9,
            "weight_decay": 0.1,
            "weight_decay_mask": ["w"],
        },
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
    "masters": (np.float16, {"masters": True, "lr": 0.25, "rounding": "stochastic", "seed": 7}),
    "split": (ml_dtypes.bfloat16, {"masters": "split", "beta1": 0.9, "momentum_dtype": "bfloat16"}),
}


def parameters(dtype):
    return {
        name: np.linspace(0.5, 1.5, int(np.prod(shape))).reshape(shape).astype(dtype)
        for name, shape in SHAPES.items()
    }


def gradients(t):
    rng = np.random.default_rng(t)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def main():
    for name, (dtype, arguments) in CASES.items():
        opt = an.Optimizer(parameters(dtype), **arguments)
        for t in (1, 2):
            opt.step(gradients(t))
        state = opt.state_dict(params=True)
        opt.step(gradients(3))
        after = opt.state_dict(params=True)
        expected = {f"expected/{key}": value for key, value in after.items() if key != "header"}
        np.savez_compressed(HERE / f"state_v1_{name}.npz", **state, **expected)


if __name__ == "__main__":
    assert an.__version__ == "0.1.0", an.__version__
    main()
