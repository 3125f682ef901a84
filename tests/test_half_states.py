"""Checkpoints of half-precision models: through every kind of file, with the same bits afterwards."""

import copy
import pickle

import numpy as np
import pytest
import safetensors.numpy

import halves_reference as halves
from adafactor_native import Optimizer
from halves_reference import bfloat16, float16
from problems import digest_of_model, normal

SHAPES = {"w": (40, 30), "b": (30,), "k": (6, 8, 3, 3), "f": (20, 30), "s": (7, 9), "z": (0, 3)}

OPTIONS = {
    "stochastic": {"rounding": "stochastic", "seed": 11},
    "masters": {"masters": "float32", "lr": lambda t: 0.1 / t},
    "split": {"masters": "split", "beta1": 0.9, "momentum_dtype": "bfloat16"},
    "last two": {"factored_axes": "last_two", "rounding": "stochastic", "beta1": 0.5},
}


def model(dtype):
    params = {name: normal(shape, dtype, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}
    params["f"] = np.asfortranarray(params["f"])
    params["z"] = np.asfortranarray(params["z"])
    params["s"] = np.zeros((14, 27), dtype)[::2, ::-3]  # neither order
    params["s"][...] = normal(SHAPES["s"], dtype, seed=9)
    return params


def step(opt, t):
    opt.step({name: normal(x.shape, x.dtype, seed=10 * t) for name, x in opt.params.items()})


def through_savez(state, path):
    np.savez(path / "state.npz", **state)
    return np.load(path / "state.npz")


def through_safetensors(state, path):
    safetensors.numpy.save_file(state, path / "state.safetensors")
    return safetensors.numpy.load_file(path / "state.safetensors")


@pytest.mark.parametrize("way", [through_savez, through_safetensors])
@pytest.mark.parametrize("dtype", halves.HALVES, ids=str)
@pytest.mark.parametrize("options", OPTIONS)
def test_a_resumed_run_continues_with_the_same_bits(options, dtype, way, tmp_path):
    if options == "split" and dtype == float16:
        options = "masters"
    opt = Optimizer(model(dtype), "numpy", **OPTIONS[options])
    for t in range(3):
        step(opt, t)
    twin = Optimizer(model(dtype), "numpy", **{**OPTIONS[options], "seed": 5})
    twin.load_state_dict(way(opt.state_dict(params=True), tmp_path))
    assert twin.seed == opt.seed
    assert digest_of_model(twin) == digest_of_model(opt)
    for t in range(3, 5):
        step(opt, t)
        step(twin, t)
        assert digest_of_model(twin) == digest_of_model(opt)


@pytest.mark.parametrize("dtype", halves.HALVES, ids=str)
@pytest.mark.parametrize("options", OPTIONS)
def test_copies_and_pickles_continue_with_the_same_bits(options, dtype):
    if options == "split" and dtype == float16:
        options = "masters"
    given = {k: v for k, v in OPTIONS[options].items() if not callable(v)}
    opt = Optimizer(model(dtype), "numpy", **given)
    step(opt, 0)
    for twin in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        # A slice is copied as an array of one order, in which sums run in another one.
        twin_params, params = twin.params, opt.params
        for t in range(1, 3):
            step(twin, t)
        again = pickle.loads(pickle.dumps(opt))
        for t in range(1, 3):
            step(again, t)
        for name in params:
            assert twin_params[name].dtype == dtype
            if name != "s":
                assert twin_params[name].tobytes() == again.params[name].tobytes()


def test_copies_are_pickled_with_their_params():
    copies = {"w": np.zeros((4, 3), bfloat16)}
    opt = Optimizer({"w": np.ones((4, 3), np.float32)}, "numpy", copies=copies, lr=0.5)
    twin = pickle.loads(pickle.dumps(opt))
    twin.step([np.ones((4, 3), np.float32)])
    assert not copies["w"].any()
    assert np.all(twin.tensors[0].copy == halves.nearest(twin.params["w"], bfloat16))


def test_states_of_other_dtypes_are_refused():
    opt = Optimizer({"w": np.ones((4, 3), bfloat16)}, "numpy", beta1=0.9, momentum_dtype="bfloat16")
    state = opt.state_dict(params=True)
    assert state["m/w"].dtype == state["param/w"].dtype == np.uint16
    others = [
        ({"beta1": 0.9}, bfloat16, r"state\['m/w'\] has dtype uint16, must be float32"),
        ({"beta1": 0.9, "momentum_dtype": "bfloat16"}, float16, "dtype of params"),
        (
            {"beta1": 0.9, "momentum_dtype": "bfloat16", "masters": "float32"},
            bfloat16,
            "state of params",
        ),
    ]
    for arguments, dtype, text in others:
        other = Optimizer({"w": np.ones((4, 3), dtype)}, "numpy", **arguments)
        with pytest.raises((TypeError, ValueError), match=text):
            other.load_state_dict(state)


def test_a_state_with_params_is_not_loaded_into_read_only_ones():
    opt = Optimizer({"w": np.ones((4, 3)), "b": np.ones(3)}, "numpy", lr=0.1)
    step(opt, 0)
    state = opt.state_dict(params=True)
    step(opt, 1)
    before = digest_of_model(opt)
    opt.params["b"].flags.writeable = False
    with pytest.raises(ValueError, match=r"params\['b'\] is read-only, must be writeable"):
        opt.load_state_dict(state)
    assert digest_of_model(opt) == before


def test_memory_is_what_is_kept():
    shape = (64, 96)
    n = 64 * 96
    factors = (64 + 96) * 8
    for options, bytes_kept in [
        ({}, factors),
        ({"masters": "float32"}, factors + 4 * n),
        ({"masters": "split"}, factors + 2 * n),
        ({"beta1": 0.9}, factors + 4 * n),
        ({"beta1": 0.9, "momentum_dtype": "bfloat16"}, factors + 2 * n),
    ]:
        assert Optimizer([np.ones(shape, bfloat16)], "numpy", **options).memory.total == bytes_kept
