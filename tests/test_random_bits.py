"""Random bits belong to a tensor's name and its own count of steps, not to its place."""

import numpy as np
import pytest

from adafactor_native import AdaFactor, Optimizer
from arrays import normal
from oracle.halves_reference import bfloat16

SHAPES = {"w": (24, 40), "b": (960,), "c": (64, 5, 3, 1), "w2": (24, 40)}
SWITCHES = {
    "lr": 0.01,
    "beta1": 0.9,
    "momentum_dtype": bfloat16,
    "rounding": "stochastic",
    "seed": 5,
}


def model(names, **more):
    params = {name: np.ones(SHAPES[name], bfloat16) for name in names}
    return Optimizer(params, **{**SWITCHES, **more})


def steps(opt, numbers, without=()):
    for t in numbers:
        grads = {name: normal(SHAPES[name], bfloat16, seed=t) for name in opt.names}
        opt.step({name: None if name in without else grad for name, grad in grads.items()})


def bits_of(opt):
    return {
        name: [x.tobytes() for x in (opt.params[name], *opt.state[name].values())]
        for name in opt.names
    }


@pytest.mark.parametrize("order", [["w2", "c", "b", "w"], ["b", "w"]])
def test_order_and_company_do_not_matter(order):
    all_of_them, others = model(SHAPES), model(order)
    steps(all_of_them, range(6))
    steps(others, range(6))
    expected = bits_of(all_of_them)
    assert bits_of(others) == {name: expected[name] for name in order}


def test_resume_in_another_order():
    whole, first, second = model(SHAPES), model(SHAPES), model(reversed(SHAPES))
    steps(whole, range(6))
    steps(first, range(3))
    second.load_state_dict(first.state_dict(params=True))
    steps(second, range(3, 6))
    assert bits_of(second) == bits_of(whole)


def test_own_count_of_steps():
    """A tensor that had no gradient for a while goes on where it was."""
    whole, rested = model(SHAPES), model(SHAPES)
    steps(whole, range(4))
    steps(rested, range(2))
    steps(rested, range(7, 10), without=["b", "w", "w2"])
    steps(rested, range(2, 4))
    for name in ("b", "w", "w2"):
        assert bits_of(rested)[name] == bits_of(whole)[name]


def test_names_have_nothing_in_common():
    opt = model(["w", "w2"])
    steps(opt, range(3))
    assert bits_of(opt)["w"] != bits_of(opt)["w2"]


def test_one_array_has_no_name():
    """Two of one seed are rounded alike, two of other seeds are not."""
    params = []
    for seed in (1, 1, 2):
        param = np.ones((24, 40), bfloat16)
        AdaFactor(param.shape, rounding="stochastic", seed=seed).update(
            param, normal(param.shape, bfloat16)
        )
        params.append(param.tobytes())
    assert params[0] == params[1] != params[2]
