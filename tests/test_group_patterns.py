"""Groups that take their tensors by name patterns step as groups that list them."""

import re

import numpy as np
import pytest

from adafactor_native import Optimizer

SHAPES = {
    "a.weight": (4, 3),
    "a.bias": (3,),
    "norm.scale": (3,),
    "b.weight": (3, 2),
    "b.bias": (2,),
}


def model():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def gradients():
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}


def names(opt):
    return [group["names"] for group in opt.param_groups]


def test_what_matches_steps_as_if_it_were_listed():
    params = model()
    opt = Optimizer(
        [{"params": params, "weight_decay": 0.5}, {"match": "*.bias", "lr": 0.25}], "numpy", lr=0.1
    )
    assert names(opt) == [("a.weight", "norm.scale", "b.weight"), ("a.bias", "b.bias")]
    other_params = model()
    first = {name: other_params[name] for name in ("a.weight", "norm.scale", "b.weight")}
    second = {name: other_params[name] for name in ("a.bias", "b.bias")}
    other = Optimizer(
        [{"params": first, "weight_decay": 0.5}, {"params": second, "lr": 0.25}], "numpy", lr=0.1
    )
    for one in (opt, other):
        one.step(gradients())
        assert [group["weight_decay"] for group in one.param_groups] == [0.5, 0.0]
    for name, param in params.items():
        assert param.tobytes() == other_params[name].tobytes()
    other.load_state_dict(opt.state_dict(params=True))


@pytest.mark.parametrize(
    "groups, expected",
    [
        (
            [{"match": ["*.bias", "norm.*"]}, {"params": None}],
            [("a.bias", "norm.scale", "b.bias"), ("a.weight", "b.weight")],
        ),
        (
            [{"params": None}, {"match": "a.*"}, {"match": "*.bias"}],
            [("norm.scale", "b.weight"), ("a.weight", "a.bias"), ("b.bias",)],
        ),
        ([{"params": None}, {"match": "*"}], [(), tuple(SHAPES)]),
        ([{"params": None}, {"match": "?.[bw]*"}], [("norm.scale",), tuple(
            name for name in SHAPES if name != "norm.scale"
        )]),
    ],
)  # fmt: skip
def test_each_tensor_goes_to_the_first_that_it_matches(groups, expected):
    opt = Optimizer(
        [{**group, "params": model()} if "params" in group else group for group in groups]
    )
    assert names(opt) == expected
    opt.step(gradients())
    assert opt.t == 1 and set(opt.counts.tolist()) == {1}


def test_tensors_of_several_groups_and_their_copies():
    params = model()
    first = {name: params[name] for name in ("a.weight", "a.bias")}
    second = [params["b.bias"], params["b.weight"]]
    copies = {"a.bias": np.zeros(3, np.float16)}
    opt = Optimizer(
        [{"params": first, "copies": copies}, {"match": ["*.bias", "2"]}, {"params": second}]
    )
    assert names(opt) == [("a.weight",), ("a.bias", "2"), ("3",)]
    grads = gradients()
    opt.step([grads["a.weight"], grads["a.bias"], grads["b.bias"], grads["b.weight"]])
    np.testing.assert_array_equal(copies["a.bias"], params["a.bias"].astype(np.float16))


REFUSED = [
    (
        [{"match": "*.bia"}],
        ValueError,
        "params[1]['match'] has '*.bia', must match at least one of",
    ),
    ([{"match": ["*", "x"]}], ValueError, "params[1]['match'] has 'x', must match at least one of"),
    ([{"match": 3}], TypeError, "params[1]['match'] is 3, must be a pattern of names or a list"),
    (
        [{"match": "*.bias"}, {"match": "a.bias"}],
        ValueError,
        "params[2]['match'] is 'a.bias', whose tensors a group before it has taken",
    ),
    ([{"match": "*", "params": {}}], TypeError, "params[1]['match'] is given beside 'params'"),
    ([{"match": "*", "copies": {}}], TypeError, "params[1]['match'] is given beside 'copies'"),
    ([{"match": "*"}, {"lr": 1}], ValueError, "params[2]['params'] is missing, must be given"),
    ([{"match": "*", "lrr": 1}], TypeError, "params[1]['lrr'] is unknown to convention 'paper'"),
    (
        [{"match": "*"}, {"params": {"a.bias": np.ones(3)}}],
        ValueError,
        "params['a.bias'] is given twice, names must be unique",
    ),
]


@pytest.mark.parametrize("groups, error, text", REFUSED)
def test_what_is_refused(groups, error, text):
    with pytest.raises(error, match="^" + re.escape(text)):
        Optimizer([{"params": model()}, *groups])


def test_a_group_that_is_added_lists_its_params():
    opt = Optimizer(model())
    with pytest.raises(ValueError, match=r"group\['params'\] is missing, must be given"):
        opt.add_param_group({"match": "*"})
