"""Pickles of optimizers: callables that cannot be in one are named, memory maps become arrays."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

from adafactor_native import Optimizer

BF16 = np.dtype(ml_dtypes.bfloat16)
KINDS = {
    "plain": (np.float32, {}),
    "masters": (BF16, {"masters": "float32", "beta1": 0.9}),
    "split": (BF16, {"masters": "split", "beta1": 0.9}),
}


def falling(t):
    return 1 / (t + 1)


def optimizer(kind="plain", **arguments):
    dtype, own = KINDS[kind]
    params = {"w": np.ones((4, 6), dtype)[:, ::2], "b": np.ones(3, dtype)}
    copies = {"b": np.ones(3, np.float16)} if dtype == np.float32 else None
    return Optimizer(params, copies=copies, **own, **arguments)


def gradients(t):
    rng = np.random.default_rng(t)
    return {"w": rng.standard_normal((4, 3)), "b": rng.standard_normal(3)}


CALLABLES = {
    "lr": lambda t: 1 / t,
    "weight_decay": lambda t: 0.1,
    "schedule": lambda t: 1.0,
    "weight_decay_mask": lambda name: name == "w",
}


@pytest.mark.parametrize("name", CALLABLES)
def test_a_lambda_is_named_and_can_be_copied(name):
    opt = optimizer(**{name: CALLABLES[name]})
    with pytest.raises(
        pickle.PicklingError, match=f"^{name} is <function <lambda>.*must be a func"
    ):
        pickle.dumps(opt)
    other = copy.deepcopy(opt)
    for t in range(3):
        opt.step(gradients(t))
        other.step(gradients(t))
    assert other.params["w"].tobytes() == opt.params["w"].tobytes()
    assert other.params["w"] is not opt.params["w"]


def test_a_lambda_set_later_is_named_by_its_group():
    opt = optimizer()
    opt.param_groups[0]["lr"] = CALLABLES["lr"]
    with pytest.raises(pickle.PicklingError, match=r"^param_groups\[0\]\['lr'\] is <function"):
        pickle.dumps(opt)
    opt.param_groups[0]["lr"] = 0.5
    assert pickle.loads(pickle.dumps(opt)).param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("convention", ["paper", "optax"])
def test_functions_of_a_module_are_pickled(convention):
    name = {"paper": "lr", "optax": "learning_rate"}[convention]
    opt = Optimizer([np.ones(3)], convention, **{name: falling})
    again = pickle.loads(pickle.dumps(opt))
    opt.step([np.ones(3)])
    again.step([np.ones(3)])
    assert again.params["0"].tobytes() == opt.params["0"].tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_memory_maps_that_are_read_only_become_arrays(kind, tmp_path):
    """As joblib hands a model over: each large array is a map of a file, opened for reading."""
    opt = optimizer(kind)
    opt.step(gradients(0))
    buffers = []
    raw = pickle.dumps(opt, protocol=5, buffer_callback=buffers.append)
    maps = []
    for i, buffer in enumerate(buffers):
        path = tmp_path / f"{i}"
        path.write_bytes(buffer.raw())
        maps.append(np.memmap(path, mode="r"))
    other = pickle.loads(raw, buffers=maps)
    assert buffers
    for t in range(1, 3):
        opt.step(gradients(t))
        other.step(gradients(t))
    for name, param in opt.params.items():
        assert other.params[name].tobytes() == param.tobytes()
        assert other.params[name].flags.writeable and type(other.params[name]) is np.ndarray
