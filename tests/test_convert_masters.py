"""States of other libraries where params have masters, keys are strings, or some have no state."""

import copy
import json
import re

import ml_dtypes
import numpy as np
import pytest

from adafactor_native import Optimizer, convert

BF16 = np.dtype(ml_dtypes.bfloat16)
SHAPES = {"w": (4, 5), "b": (5,), "k": (6, 2, 5)}
LIBRARIES = {
    "torch": {},
    "huggingface": {"beta1": 0.9},
    "optax": {"learning_rate": 0.1, "min_dim_size_to_factor": 2, "momentum": 0.9},
}
STORAGE = [(BF16, "float32"), (BF16, "split"), (np.float16, "float32"), (BF16, None)]


def gradients(t):
    rng = np.random.default_rng(t)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def started(convention, dtype=np.float32, steps=3, **arguments):
    rng = np.random.default_rng(7)
    params = {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}
    opt = Optimizer(params, convention, **{**LIBRARIES[convention], **arguments})
    for t in range(steps):
        opt.step(gradients(t))
    return opt


def written(opt):
    if opt.convention == "optax":
        zeros = {name: np.zeros(1, np.float32) for name in SHAPES}
        factored = {"count": 0, "v_row": dict(zeros), "v_col": dict(zeros), "v": dict(zeros)}
        ema = {"count": 0, "ema": {n: np.zeros(s, np.float32) for n, s in SHAPES.items()}}
        for tensor in opt.tensors:
            shapes = {"v": tensor.param.shape}
            if tensor.axes is not None:
                rows, cols = tensor.axes
                shapes = {
                    "v_row": tuple(np.delete(tensor.param.shape, cols)),
                    "v_col": tuple(np.delete(tensor.param.shape, rows)),
                }
            for field, shape in shapes.items():
                factored[field][tensor.name] = np.zeros(shape, np.float32)
        return convert.to_optax(opt, [factored, ema])
    return getattr(convert, f"to_{opt.convention}")(opt)


def load(opt, state):
    getattr(convert, f"load_{opt.convention}")(opt, state)


def bits(opt):
    arrays = opt.state_dict(params=True)
    return {key: array.tobytes() for key, array in arrays.items()}


def in_json(state):
    """What a state is after a file of JSON: keys are strings, arrays are lists."""
    return json.loads(json.dumps(state, default=lambda x: x.tolist()))


@pytest.mark.parametrize("dtype, masters", STORAGE)
@pytest.mark.parametrize("convention", LIBRARIES)
def test_all_six_functions_leave_masters_with_their_params(convention, dtype, masters):
    there = started(convention, dtype, masters=masters)
    here = started(convention, dtype, steps=0, masters=masters)
    for name, param in here.params.items():
        param[...] = there.params[name]
    load(here, written(there))
    assert here.t == 3 and here.counts.tolist() == [3, 3, 3]
    here.step({**gradients(9), "k": np.zeros(SHAPES["k"], np.float32)})
    for name, param in here.params.items():
        moved = np.abs(param.astype(np.float64) - there.params[name].astype(np.float64))
        assert moved.max() < 0.2, name
        if masters == "float32":
            np.testing.assert_array_equal(here.state[name]["master"].astype(dtype), param)


@pytest.mark.parametrize("convention", ["torch", "huggingface"])
def test_a_state_that_went_through_json_is_the_same(convention):
    there = started(convention)
    one, other = (started(convention, steps=1) for _ in range(2))
    state = written(there)
    load(one, state)
    load(other, in_json(state))
    assert bits(one) == bits(other) and other.t == 3


@pytest.mark.parametrize("masters", ["float32", "split"])
@pytest.mark.parametrize("convention", ["torch", "huggingface"])
def test_params_without_a_state_keep_their_weights(convention, masters):
    """A frozen base beside a trained adapter, and nothing trained at all."""
    state = written(started(convention))
    for left in ([1], []):
        some = copy.deepcopy(state)
        some["state"] = {i: one for i, one in some["state"].items() if i in left}
        opt = started(convention, BF16, steps=0, masters=masters)
        before = {name: param.copy() for name, param in opt.params.items()}
        load(opt, some)
        assert opt.counts.tolist() == [3 * (i in left) for i in range(3)]
        opt.step({"w": None, "b": gradients(0)["b"], "k": np.zeros(SHAPES["k"], np.float32)})
        np.testing.assert_array_equal(opt.params["w"], before["w"])
        np.testing.assert_array_equal(opt.params["k"], before["k"])
        assert np.abs(opt.params["b"].astype(np.float32)).max() > 0.01


UNKNOWN = [
    (lambda s: s["state"].update({7: {}}), "state_dict['state'] has 7, which is none of the"),
    (lambda s: s["state"].update({"w": {}}), "state_dict['state'] has 'w', which is none of the"),
    (lambda s: s["state"].update({"0": {}}), "state_dict['state'] has '0' twice"),
    (lambda s: s["param_groups"].append({}), "state_dict['param_groups'][1] must be a mapping"),
    (lambda s: s.update(param_groups=3), "state_dict['param_groups'] must be a list of mappings"),
    (lambda s: s.update(state=[1]), "state_dict['state'] is a list, must be a mapping"),
    (lambda s: s["state"].update({0: [1]}), "state_dict['state'][0] is a list, must be a mapping"),
    (lambda s: s["param_groups"][0].update(params=[0, 0, 1]), "state_dict['param_groups'] has 0"),
    (lambda s: s["param_groups"][0].update(params=[0, 1, "x"]), "state_dict has the parameters"),
    (lambda s: s["state"][1].update(step=10**400), "state_dict['state'][1]['step'] is a int"),
    (lambda s: s["state"][1].update(step=2.0**60), "state_dict['state'][1]['step'] is 1.15"),
]


@pytest.mark.parametrize("change, text", UNKNOWN)
@pytest.mark.parametrize("convention", ["torch", "huggingface"])
def test_what_is_unknown_is_refused(convention, change, text):
    state = written(started(convention))
    change(state)
    if "parameters" in text:
        state["state"].pop(2)
    opt = started(convention, steps=1)
    before = bits(opt)
    with pytest.raises((TypeError, ValueError), match="^" + re.escape(text)):
        load(opt, state)
    assert bits(opt) == before


@pytest.mark.parametrize("convention", ["torch", "huggingface"])
def test_names_as_keys_are_found_by_name(convention):
    state = written(started(convention))
    one, other = (started(convention, steps=1) for _ in range(2))
    load(one, state)
    names = dict(enumerate(SHAPES))
    load(
        other,
        {
            "state": {names[i]: values for i, values in state["state"].items()},
            "param_groups": [{"params": ["k", "b", "w"]}],
        },
    )
    assert bits(one) == bits(other)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("key", ["row_var", "col_var"])
def test_statistics_that_no_step_leaves_are_refused(key, value):
    state = written(started("torch"))
    state["state"][0][key].flat[2] = value
    opt = started("torch", steps=1)
    before = bits(opt)
    text = f"state_dict['state'][0]['{key}']"
    with pytest.raises(ValueError, match=re.escape(text) + r"\S+ is \S+, must be finite and >= 0"):
        load(opt, state)
    assert bits(opt) == before


@pytest.mark.parametrize("convention", LIBRARIES)
def test_another_convention_is_refused(convention):
    state = written(started(convention))
    opt = Optimizer({name: np.ones(shape) for name, shape in SHAPES.items()}, "keras")
    with pytest.raises(ValueError, match=r"^convention is 'keras', must be "):
        getattr(convert, f"load_{convention}")(opt, state)


class TorchLike:
    """A tensor as far as a conversion looks at it: one of bfloat16 is no array for NumPy."""

    def __init__(self, values, dtype):
        self._values, self.dtype = values, dtype

    def detach(self):
        return self

    cpu = detach

    def float(self):
        return TorchLike(self._values, "torch.float32")

    def __array__(self, dtype=None, copy=None):
        if self.dtype != "torch.float32":
            raise TypeError(f"Got unsupported ScalarType {self.dtype}")
        return np.asarray(self._values, dtype)


def test_bfloat16_of_torch_is_read_and_what_is_not_has_a_hint():
    state = written(started("huggingface"))
    one, other = (started("huggingface", steps=1) for _ in range(2))
    moment = state["state"][0]["exp_avg"].astype(BF16).astype(np.float32)
    state["state"][0]["exp_avg"] = moment
    load(one, state)
    state["state"][0]["exp_avg"] = TorchLike(moment, "torch.bfloat16")
    load(other, state)
    assert bits(one) == bits(other)
    state["state"][0]["exp_avg"] = TorchLike(moment, "torch.float8")
    with pytest.raises(TypeError, match=r"give what \.detach\(\)\.cpu\(\)\.float\(\) returns"):
        load(other, state)
    assert bits(one) == bits(other)
