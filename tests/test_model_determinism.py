"""Whole models have the same bits for every number of threads, instruction set, order and grouping."""

import hashlib

import numpy as np
import pytest

import halves_reference as halves
from adafactor_native import AdaFactor, Optimizer
from buffers import Buffer
from problems import normal

THREADS = (1, 2, 3, 7)

# Large ones, small ones that are stepped together, many small matrices, interleaved ones, and none
SHAPES = {
    "large": (1031, 517),
    "wide": (64, 9000),
    "bias": (517,),
    "scalar": (),
    "heads": (12, 96, 64),
    "kernel": (40, 30, 3, 3),
    "large kernel": (64, 96, 3, 3),
    "points": (300, 100, 1, 1),
    "empty": (3, 0),
    **{f"small {i}": (256, 64) for i in range(12)},
    "long": (300001,),
}

RUNS = {
    "numpy": {"convention": "numpy"},
    "last two, clipped together": {
        "convention": "huggingface",
        "beta1": 0.9,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
    },
    "clamped": {"convention": "torch", "eps": (1e-2, 1e-3), "weight_decay": 0.1},
    "two largest, each matrix": {
        "convention": "t5x",
        "learning_rate": 0.1,
        "min_dim_size_to_factor": 3,
    },
    "momentum of u": {"convention": "big_vision", "lr": 0.1, "wd": 0.1},
    "carried": {"convention": "numpy", "factored_axes": "last_two", "carry_param_rms": True},
}


def model(dtype):
    params = {name: normal(shape, dtype, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}
    params["heads"] = Buffer(params["heads"], "Fortran").array
    return params


def gradients(t):
    return {
        name: normal(shape, np.float32, seed=100 * t + i)
        for i, (name, shape) in enumerate(SHAPES.items())
    }


def digest(opt):
    sha = hashlib.sha256()
    for name, param in opt.params.items():
        sha.update(param.tobytes())
        for state in opt.state[name].values():
            sha.update(state.tobytes())
    return sha.hexdigest()


def digest_after(grads, dtype=np.float32, **options):
    opt = Optimizer(model(dtype), **{"convention": "numpy", **options})
    for each in grads:
        opt.step(each, grad_scale=4.0)
    return digest(opt)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("run", RUNS)
def test_threads_instruction_sets_and_atomicity(run, dtype, each_isa):
    grads = [gradients(t) for t in (1, 2)]
    digests = {
        (isa, threads, atomic): digest_after(
            grads, dtype, num_threads=threads, atomic=atomic, **RUNS[run]
        )
        for isa in each_isa()
        for threads in THREADS
        for atomic in ("all", "tensor")
    }
    assert len(set(digests.values())) == 1, digests


HALF_RUNS = {
    "nearest": {},
    "stochastic": {"rounding": "stochastic", "seed": 9},
    "masters": {"masters": "float32", "rounding": "stochastic"},
    "first moments": {"beta1": 0.9, "momentum_dtype": "bfloat16", "factored_axes": "last_two"},
    "clamped": {"convention": "torch", "eps": (1e-2, 1e-3), "rounding": "stochastic"},
    "each matrix": {
        "convention": "t5x",
        "learning_rate": 0.1,
        "min_dim_size_to_factor": 3,
        "rounding": "stochastic",
    },
}


@pytest.mark.parametrize("dtype", halves.HALVES, ids=str)
@pytest.mark.parametrize("run", [*HALF_RUNS, "split"])
def test_half_precision_has_the_same_bits(run, dtype, each_isa):
    if run == "split" and dtype != halves.bfloat16:
        options = {"carry_param_rms": True}
    else:
        options = HALF_RUNS.get(run, {"masters": "split"})
    grads = [{name: grad.astype(dtype) for name, grad in gradients(t).items()} for t in (1, 2)]
    digests = {
        (isa, threads, atomic): digest_after(
            grads, dtype, num_threads=threads, atomic=atomic, **options
        )
        for isa in each_isa()
        for threads in THREADS[:3]
        for atomic in ("all", "tensor")
    }
    assert len(set(digests.values())) == 1, digests


@pytest.mark.parametrize("atomic", ["all", "tensor"])
def test_a_model_steps_as_its_tensors_do_alone(atomic):
    params, alone = model(np.float32), model(np.float32)
    opt = Optimizer(params, "numpy", atomic=atomic)
    optimizers = {name: AdaFactor(shape) for name, shape in SHAPES.items()}
    for t in (1, 2):
        grads = gradients(t)
        opt.step(grads)
        for name in SHAPES:
            optimizers[name].update(alone[name], grads[name])
    for name in SHAPES:
        assert params[name].tobytes() == alone[name].tobytes(), name


@pytest.mark.parametrize("run", [name for name in RUNS if "max_grad_norm" not in RUNS[name]])
def test_order_and_company_do_not_matter(run):
    together = Optimizer(model(np.float32), **RUNS[run])
    params = model(np.float32)
    reverse = Optimizer(dict(reversed(list(params.items()))), **RUNS[run])
    single = {
        name: Optimizer({name: param}, **RUNS[run]) for name, param in model(np.float32).items()
    }
    for t in (1, 2):
        grads = gradients(t)
        together.step(grads)
        reverse.step(grads)
        for name, opt in single.items():
            opt.step({name: grads[name]})
    for name in SHAPES:
        expected = together.params[name].tobytes()
        assert params[name].tobytes() == expected, name
        assert single[name].params[name].tobytes() == expected, name


@pytest.mark.parametrize("run", RUNS)
def test_nothing_is_left_over_from_a_step_that_was_refused(run):
    """A nan in the last tensor: afterwards the run continues as if there had been no such step."""
    grads = [gradients(t) for t in (1, 2)]
    bad = gradients(3)
    bad["long"][-1] = np.nan
    expected = digest_after(grads, **RUNS[run])
    opt = Optimizer(model(np.float32), **RUNS[run])
    opt.step(grads[0], grad_scale=4.0)
    before = digest(opt)
    with pytest.raises(FloatingPointError, match=r"grads\['long'\]\[300000\] is nan"):
        opt.step(bad, grad_scale=4.0)
    assert (digest(opt), opt.t) == (before, 1)
    opt.step(grads[1], grad_scale=4.0)
    assert digest(opt) == expected
