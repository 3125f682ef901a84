"""Pickles and copies: they continue with the same bits, and with arrays of their own."""

import copy
import pickle
import weakref

import numpy as np
import pytest

from adafactor_native import Optimizer
from arrays import normal
from optimizers import digest_of_model
from oracle import halves_reference as halves
from oracle.halves_reference import bfloat16, float16

WAYS = {
    **{
        f"pickle {protocol}": lambda x, protocol=protocol: pickle.loads(pickle.dumps(x, protocol))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
SHAPES = [(), (7,), (5, 9), (2, 3, 4)]


def run_with_history(kind, shape):
    """A run with nothing left at its default, two steps and a skipped one behind it."""
    run = kind(
        normal(shape, np.float32),
        lr=0.5,
        beta2=0.75,
        eps=1e-8,
        clip_threshold=0.25,
        scale_parameter=False,
        num_threads=3,
        nonfinite="skip",
        carry_param_rms=True,
        seed=5,
    )
    for t in range(2):
        run.step(normal(shape, seed=t + 1))
    run.step(np.full(shape, np.nan))
    return run


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_copy_continues(shape, way, kind):
    run = run_with_history(kind, shape)
    twin = WAYS[way](run)
    assert repr(twin.opt) == repr(run.opt)
    assert (twin.t, twin.skipped, twin.digest()) == (2, 1, run.digest())
    for t in range(3):
        grad = normal(shape, seed=t + 10)
        run.step(grad)
        twin.step(grad)
        assert twin.digest() == run.digest()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_copy_has_arrays_of_its_own(shape, way, kind):
    run = run_with_history(kind, shape)
    before = run.digest()
    twin = WAYS[way](run)
    twin.set(lr=9.0, eps=1.0, nonfinite="raise")
    twin.step(normal(shape, seed=5))
    assert run.digest() == before
    assert (run.get("lr"), run.get("eps"), run.get("nonfinite")) == (0.5, 1e-8, "skip")


def test_a_pickle_continues_in_another_process(python, tmp_path, kind):
    run = run_with_history(kind, (5, 9))
    (tmp_path / "run.pickle").write_bytes(pickle.dumps(run))
    output = python("""
        import pickle, arrays
        with open("run.pickle", "rb") as file:
            run = pickle.load(file)
        run.step(arrays.normal((5, 9), seed=3))
        print(run.digest())
    """)
    run.step(normal((5, 9), seed=3))
    assert output.strip() == run.digest()


def new_params(dtype=np.float32, seed=0):
    """By name a matrix, a vector, a kernel and a scalar."""
    shapes = {"w": (4, 5), "b": (5,), "k": (2, 3, 4), "s": ()}
    return {
        name: normal(shape, dtype, seed=seed + 10 * i)
        for i, (name, shape) in enumerate(shapes.items())
    }


def groups(params):
    w, b, k, s = params.values()
    return [{"params": {"w": w}}, {"params": [b, k], "lr": 0.5}, {"params": s, "eps": 1e-3}]


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_of_a_model_has_its_groups_and_options(way):
    opt = Optimizer(
        groups(new_params()), convention="optax", momentum=0.9, weight_decay_rate=0.1,
        nonfinite="skip", min_dim_size_to_factor=0, atomic="tensor", max_grad_norm=2.0,
        num_threads=2, carry_param_rms=True,
    )  # fmt: skip
    opt.step({**dict(zip(opt.names, new_params(seed=1).values())), "2": None})
    opt.param_groups[0]["weight_decay"] = 0.2
    twin = WAYS[way](opt)
    assert digest_of_model(twin) == digest_of_model(opt) and repr(twin) == repr(opt)
    assert [dict(g, params=0) for g in twin.param_groups] == [
        dict(g, params=0) for g in opt.param_groups
    ]
    for name in ("nonfinite", "atomic", "max_grad_norm", "num_threads", "carry_param_rms"):
        assert getattr(twin, name) == getattr(opt, name)
    before = digest_of_model(opt)
    twin.param_groups[0]["clip_threshold"] = 0.5
    twin.step(list(new_params(seed=2).values()))
    assert digest_of_model(opt) == before
    opt.param_groups[0]["clip_threshold"] = 0.5
    opt.step(list(new_params(seed=2).values()))
    assert digest_of_model(twin) == digest_of_model(opt)
    twin.add_param_group({"params": [np.ones(3)]})
    assert twin.names == (*opt.names, "4")


def test_a_deepcopy_together_with_its_params():
    params = new_params()
    opt = Optimizer(params, convention="numpy")
    twins, twin = copy.deepcopy((params, opt))
    twin.step(new_params(seed=1))
    assert all(twin.params[name] is twins[name] for name in params)
    assert twins["w"].tobytes() != params["w"].tobytes()


def test_a_model_is_freed_with_its_optimizer():
    """At once: a cycle would keep it until somebody collects garbage."""
    params = new_params()
    opt = Optimizer(params, convention="torch", lr=lambda t: 0.1)
    opt.step(new_params(seed=1))
    kept = [weakref.ref(x) for x in (*params.values(), opt.state["w"]["exp_row"], opt)]
    del params, opt
    assert [ref() for ref in kept] == [None] * len(kept)


HALF_OPTIONS = {
    "stochastic": {"rounding": "stochastic", "seed": 11},
    "masters": {"masters": "float32"},
    "split": {"masters": "split", "beta1": 0.9, "momentum_dtype": "bfloat16"},
    "last two": {"factored_axes": "last_two", "rounding": "stochastic", "beta1": 0.5},
}


@pytest.mark.parametrize("way", ["copy", "deepcopy", f"pickle {pickle.HIGHEST_PROTOCOL}"])
@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        (options, dtype)
        for options in HALF_OPTIONS
        for dtype in halves.HALVES
        if (options, dtype) != ("split", float16)
    ],
    ids=str,
)
def test_a_copy_of_half_precision_continues(options, dtype, way):
    shapes = {"w": (40, 30), "b": (30,), "k": (6, 8, 3, 3), "f": (20, 30), "z": (0, 3)}
    params = {name: normal(shape, dtype, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    params["f"], params["z"] = np.asfortranarray(params["f"]), np.asfortranarray(params["z"])
    opt = Optimizer(params, convention="numpy", **HALF_OPTIONS[options])

    def step(opt, t):
        opt.step({name: normal(x.shape, dtype, seed=10 * t) for name, x in opt.params.items()})

    step(opt, 0)
    twin = WAYS[way](opt)
    for t in range(1, 3):
        step(opt, t)
        step(twin, t)
        assert digest_of_model(twin) == digest_of_model(opt)
    assert all(param.dtype == dtype for param in twin.params.values())


@pytest.mark.parametrize("dtype", halves.HALVES, ids=str)
@pytest.mark.parametrize("way", ["deepcopy", f"pickle {pickle.HIGHEST_PROTOCOL}"])
def test_a_copy_of_a_slice_steps_as_the_whole_array_that_it_is(way, dtype):
    """A slice is copied as an array of one order, in which sums may run in another one."""
    params = {"s": np.zeros((14, 27), dtype)[::2, ::-3]}  # neither order
    params["s"][...] = normal((7, 9), dtype, seed=9)
    opt = Optimizer(params, convention="numpy", rounding="stochastic", seed=11)
    twin, whole = (
        WAYS[way](opt),
        Optimizer({"s": params["s"].copy()}, convention="numpy", rounding="stochastic", seed=11),
    )
    assert twin.params["s"].dtype == dtype
    assert digest_of_model(twin) == digest_of_model(opt)
    for each in (twin, whole):
        each.step({"s": normal((7, 9), dtype, seed=1)})
    assert twin.params["s"].tobytes() == whole.params["s"].tobytes()


def test_copies_are_pickled_with_their_params():
    copies = {"w": np.zeros((4, 3), bfloat16)}
    opt = Optimizer({"w": np.ones((4, 3), np.float32)}, convention="numpy", copies=copies, lr=0.5)
    twin = pickle.loads(pickle.dumps(opt))
    twin.step([np.ones((4, 3), np.float32)])
    assert not copies["w"].any()
    assert np.all(twin.tensors[0].copy == halves.nearest(twin.params["w"], bfloat16))
