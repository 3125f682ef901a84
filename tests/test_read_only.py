"""What is made anew at each look is not assigned to in silence."""

import copy
import pickle

import numpy as np
import pytest

from adafactor_native import AdaFactor, Optimizer


def optimizer():
    return Optimizer({"w": np.ones((2, 3)), "b": np.ones(3)}, beta1=0.9)


WRITES = [
    lambda mapping: mapping.__setitem__("w", 1),
    lambda mapping: mapping.__setitem__("new", 1),
    lambda mapping: mapping.__delitem__("w"),
    lambda mapping: mapping.__ior__({"w": 1}),
    lambda mapping: mapping.update(w=1),
    lambda mapping: mapping.pop("w"),
    lambda mapping: mapping.popitem(),
    lambda mapping: mapping.clear(),
    lambda mapping: mapping.setdefault("x", 1),
]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    "look, remedy",
    [
        (lambda opt: opt.params, "opt.params_changed()"),
        (lambda opt: opt.state, "opt.load_state_dict(state)"),
        (lambda opt: opt.state["w"], "opt.load_state_dict(state)"),
    ],
)
def test_an_assignment_is_refused_with_the_remedy(look, remedy, write):
    opt = optimizer()
    with pytest.raises(TypeError, match="cannot be assigned to") as caught:
        write(look(opt))
    assert remedy in str(caught.value)


def test_counts_are_read_only():
    opt = optimizer()
    with pytest.raises(ValueError, match="read-only"):
        opt.counts[0] = 3
    assert opt.state_dict()["t"].flags.writeable


@pytest.mark.parametrize("name", ["params", "state", "counts", "t", "names", "tensors"])
def test_attributes_cannot_be_replaced(name):
    opt = optimizer()
    with pytest.raises(AttributeError):
        setattr(opt, name, None)


def test_they_are_dicts_all_the_same():
    opt = optimizer()
    assert isinstance(opt.state, dict) and opt.params == dict(opt.params)
    for again in (copy.deepcopy(opt.state), pickle.loads(pickle.dumps(opt.state)), dict(opt.state)):
        assert type(again) is dict and again.keys() == {"w", "b"}
    assert type(copy.deepcopy(opt.state)["w"]) is dict
    assert set(opt.params | {"x": 1}) == {"w", "b", "x"}


def test_the_arrays_are_written_to():
    opt = optimizer()
    opt.state["w"]["m"][...] = 2
    assert (opt.tensors[0].m == 2).all()


def test_one_seed_is_one_noise_in_a_loop_and_not_in_a_model():
    params = [np.ones((8, 8), np.float16) for _ in range(2)]
    for param in params:
        AdaFactor((8, 8), rounding="stochastic", seed=3).update(param, np.ones((8, 8)))
    assert params[0].tobytes() == params[1].tobytes()
    params = [np.ones((8, 8), np.float16) for _ in range(2)]
    opt = Optimizer(params, "numpy", lr=1e-3, rounding="stochastic", seed=3)
    opt.step([np.ones((8, 8))] * 2)
    assert params[0].tobytes() != params[1].tobytes()
