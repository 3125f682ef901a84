"""One run that was interrupted, renamed, grown, given masters and a new learning rate, in all ways.

It must end, to the bit, where a run ends that had the same history without files, names and methods:
each change is done to that one by hand, in NumPy.
"""

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from adafactor_native import Optimizer

BF16 = np.dtype(ml_dtypes.bfloat16)
F16 = np.dtype(np.float16)
SHAPES = {"embed": (8, 6), "bias": (6,), "kernel": (2, 3, 4)}
GROWN = {"embed": (12, 6), "bias": (8,), "kernel": (2, 3, 4)}
NEW_VALUE = 0.25

CONVENTIONS = {
    "paper": {"lr": 0.05},
    "numpy": {"lr": 0.05},
    "huggingface": {"lr": 0.05, "relative_step": False},
    "torch": {"lr": 0.05},
    "optax": {"learning_rate": 0.05, "min_dim_size_to_factor": 2},
    "keras": {"learning_rate": 0.05},
    "t5x": {"learning_rate": 0.05, "min_dim_size_to_factor": 2},
    "big_vision": {"lr": 0.05, "min_dim_size_to_factor": 2},
}
LR = {"optax": "learning_rate", "keras": "learning_rate", "t5x": "learning_rate"}

# dtype of params, what is kept before the change, what afterwards
STORAGE = {
    "masters on": (BF16, {}, {"masters": "float32"}),
    "masters of float16 on": (F16, {}, {"masters": "float32"}),
    "split on": (BF16, {}, {"masters": "split"}),
    "masters and momentum": (BF16, {}, {"masters": "float32", "beta1": 0.9}),
    "momentum narrowed": (
        BF16,
        {"beta1": 0.9},
        {"masters": "float32", "beta1": 0.9, "momentum_dtype": "bfloat16"},
    ),
    "momentum dropped": (np.dtype(np.float32), {"beta1": 0.9}, {}),
    "stochastic": (BF16, {"rounding": "stochastic", "seed": 3}, {"rounding": "stochastic"}),
}


def arrays(shapes, seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def gradients(shapes, t, prefix=""):
    return {prefix + name: grad for name, grad in arrays(shapes, 100 + t).items()}


def grown(array, shape, fill):
    """Return an array with more lines behind the old ones of its first axis, of this value."""
    new = np.empty(shape, array.dtype)
    new[...] = fill
    new[tuple(slice(n) for n in array.shape)] = array
    return new


def values(opt):
    state = opt.state_dict(params=True)
    return {key: x.tobytes() for key, x in state.items() if key not in ("header", "t")}


def new_run(prefix, convention, dtype, arguments):
    params = {prefix + name: param for name, param in arrays(SHAPES, 0, dtype).items()}
    return Optimizer(params, convention, **{**CONVENTIONS[convention], **arguments})


def lived(tmp_path, suffix, convention, dtype, before, after):
    """Return the run with the library's own means."""
    first = new_run("module.", convention, dtype, before)
    for t in range(3):
        first.step(gradients(SHAPES, t, "module."))
    path = tmp_path / f"checkpoint{suffix}"
    first.save(path, params=True)
    first.step(gradients(SHAPES, 99, "module."))  # a step that is lost with the process

    params = arrays(SHAPES, 7, dtype)  # of the new script, not yet the old ones
    new = {**CONVENTIONS[convention], LR.get(convention, "lr"): 0.02}
    opt = Optimizer(params, convention, **{**new, **after})
    opt.load(path, rename=lambda name: name.split(".", 1)[1], keep=["lr"], convert=True)
    for name, shape in GROWN.items():
        if shape != SHAPES[name]:
            params[name] = grown(params[name], shape, NEW_VALUE)
            opt.resize(name, params[name])
    for t in range(3, 5):
        opt.step(gradients(GROWN, t))
    opt.save(path, params=True)
    opt = Optimizer(arrays(GROWN, 8, dtype), convention, **{**new, **after})
    opt.load(path)
    for t in range(5, 8):
        opt.step(gradients(GROWN, t))
    return opt


def by_hand(convention, dtype, before, after):
    """Return a run with the same history, whose every change is written into its arrays."""
    first = new_run("module.", convention, dtype, before)
    for t in range(3):
        first.step(gradients(SHAPES, t, "module."))
    params = {
        name: grown(first.params[f"module.{name}"], shape, NEW_VALUE)
        for name, shape in GROWN.items()
    }
    new = {**CONVENTIONS[convention], LR.get(convention, "lr"): 0.02}
    opt = Optimizer(params, convention, **{**new, **after}, seed=first.seed)
    for name, state in opt.state.items():
        old = first.state[f"module.{name}"]
        for kind in ("exp_row", "exp_col", "v"):
            if kind in old:
                state[kind][...] = grown(old[kind], state[kind].shape, old[kind].mean(0))
        if "m" in state:
            state["m"][...] = grown(old["m"], state["m"].shape, 0) if "m" in old else 0
        if "master" in state:
            state["master"][...] = params[name]
        if "low" in state:
            state["low"][...] = 0
    opt._tensors.set_counts(3, 0, [3] * len(SHAPES))
    for t in range(3, 8):
        opt.step(gradients(GROWN, t))
    return opt


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_it_ends_where_a_run_with_the_same_history_ends(tmp_path, convention, storage, suffix):
    dtype, before, after = STORAGE[storage]
    if convention == "big_vision":
        before, after = ({"beta1": None, **keeps} for keeps in (before, after))
    one = lived(tmp_path, suffix, convention, dtype, before, after)
    two = by_hand(convention, dtype, before, after)
    assert one.t == two.t == 8 and one.counts.tolist() == two.counts.tolist()
    assert values(one) == values(two)


def test_every_test_that_the_guide_names_exists():
    """The table of elastic resume says for each change which test shows it."""
    root = Path(__file__).parents[1]
    guide = (root / "adafactor_native" / "README.md").read_text()
    table = guide.split("### Elastic resume\n")[1].split("\n### ")[0].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        files = re.findall(r"`(test_\w+\.py)`", row)
        sources = [(root / "tests" / file).read_text() for file in files or ["test_elastic.py"]]
        for test in named:
            assert any(f"\ndef {test}(" in source for source in sources), (test, files)
