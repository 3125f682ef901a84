"""Nested models step as flat ones whose names tell the way: "dense/kernel"."""

import collections
import re
import types

import numpy as np
import pytest

from adafactor_native import Optimizer
from adafactor_native.conventions import CONVENTIONS
from oracle.halves_reference import bfloat16

DTYPES = [np.float32, np.float64, np.float16, bfloat16]
SHAPES = {
    "embed": (5, 4),
    "dense/kernel": (4, 3),
    "dense/bias": (3,),
    "layers/0/w": (3, 3),
    "layers/0/b": (3,),
    "layers/1/w": (3, 2),
    "layers/1/b": (2,),
    "scale": (),
}
ARGUMENTS = {"t5x": {"learning_rate": 0.1}, "big_vision": {"lr": 0.1}}


def leaves(dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(s), dtype) for name, s in SHAPES.items()}


def nested(flat):
    """Return {"layers": [{"w": ..., "b": ...}, ...], ...} of leaves by name."""
    layers = [{kind: flat[f"layers/{i}/{kind}"] for kind in "wb"} for i in range(2)]
    return {
        "embed": flat["embed"],
        "dense": {"kernel": flat["dense/kernel"], "bias": flat["dense/bias"]},
        "layers": layers,
        "scale": flat["scale"],
    }


def as_proxy(flat):
    tree = nested(flat)
    tree["dense"] = types.MappingProxyType(tree["dense"])
    tree["layers"] = tuple(collections.OrderedDict(layer) for layer in tree["layers"])
    return tree


FORMS = {
    "flat": lambda flat: flat,
    "nested": nested,
    "other containers": as_proxy,
    "pairs": lambda flat: list(flat.items()),
    "pairs of parts": lambda flat: list(nested(flat).items()),
    "generator of pairs": lambda flat: ((name, leaf) for name, leaf in flat.items()),
    "items": lambda flat: flat.items(),
    "items of parts": lambda flat: nested(flat).items(),
}


def bits(opt):
    return {key: value.tobytes() for key, value in opt.state_dict(params=True).items()}


def ran(flat, grads, convention="paper", **arguments):
    opt = Optimizer(flat, convention, **ARGUMENTS.get(convention, {}), **arguments)
    for grad in grads:
        opt.step(grad)
    return opt


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_tree_steps_as_its_leaves(convention, dtype):
    grads = [leaves(dtype, seed=1), leaves(np.float32, seed=2)]
    expected = ran(leaves(dtype), grads, convention)
    got = ran(nested(leaves(dtype)), [nested(grad) for grad in grads], convention)
    assert got.names == expected.names == tuple(SHAPES)
    assert bits(got) == bits(expected)


@pytest.mark.parametrize("of_grads", FORMS)
@pytest.mark.parametrize("of_params", FORMS)
def test_every_form_of_params_with_every_form_of_gradients(of_params, of_grads):
    flat, grad = leaves(), leaves(seed=1)
    opt = Optimizer(FORMS[of_params](flat))
    assert opt.names == tuple(SHAPES)
    assert all(opt.params[name] is flat[name] for name in SHAPES)
    opt.step(FORMS[of_grads](grad))
    opt.accumulate(FORMS[of_grads](grad))
    opt.step()
    assert bits(opt) == bits(ran(leaves(), [grad, grad]))


def test_layers_in_a_list_are_a_tree_and_no_groups():
    def layers(seed):
        flat = leaves(seed=seed)
        return [{k: flat[f"layers/{i}/{k}"] for k in "wb"} for i in range(2)]

    params = layers(0)
    opt = Optimizer(params)
    assert opt.names == ("0/w", "0/b", "1/w", "1/b") and len(opt.param_groups) == 1
    opt.step(layers(1))
    flat = {f"{i}/{k}": x for i, layer in enumerate(layers(0)) for k, x in layer.items()}
    grads = {f"{i}/{k}": x for i, layer in enumerate(layers(1)) for k, x in layer.items()}
    assert bits(opt) == bits(ran(flat, [grads]))
    opt = Optimizer([params[0]])  # one layer is not one group either
    opt.step([layers(1)[0]])
    opt.step([{"w": None, "b": layers(1)[0]["b"]}])
    assert opt.counts.tolist() == [1, 2]


def test_tuples_of_weights_and_biases():
    pairs = [(np.ones((3, 2)), np.ones(2)), (np.ones((2, 4)), np.ones(4))]
    opt = Optimizer(pairs)
    assert opt.names == ("0/0", "0/1", "1/0", "1/1")
    opt.step([(np.ones((3, 2)), None), None])
    opt.step([(np.ones((3, 2)), np.ones(2)), [np.ones((2, 4)), np.ones(4)]])
    assert opt.counts.tolist() == [2, 1, 1, 1]


def test_a_tree_in_groups_by_pattern_takes_gradients_of_its_own_form():
    """There are as many groups as layers, and yet the gradients are the tree's, not the groups'."""
    shape = (2, 2)
    params = [[np.full(shape, 1.0 + i), np.full(shape, 3.0 + i)] for i in range(2)]
    grads = [[np.full(shape, 1.0 * 10**i), np.full(shape, 2.0 * 10**i)] for i in range(2)]
    opt = Optimizer([{"params": params}, {"match": "*/1", "lr": 0.5}])
    assert [group["names"] for group in opt.param_groups] == [("0/0", "1/0"), ("0/1", "1/1")]
    report = opt.step(grads)
    assert {name: report[name]["rms_grad"] for name in opt.names} == {
        "0/0": 1.0, "1/0": 10.0, "0/1": 2.0, "1/1": 20.0,
    }  # fmt: skip


def test_groups_hold_trees_and_patterns_match_names():
    tree = nested(leaves())
    layers = tree.pop("layers")
    opt = Optimizer(
        [{"params": tree}, {"params": {"layers": layers}, "lr": 0.5}, {"match": "*/b*", "lr": 0.25}]
    )
    assert [group["names"] for group in opt.param_groups] == [
        ("embed", "dense/kernel", "scale"),
        ("layers/0/w", "layers/1/w"),
        ("dense/bias", "layers/0/b", "layers/1/b"),
    ]
    opt.step(nested(leaves(seed=1)))
    opt.add_param_group({"params": {"head": {"w": np.ones((2, 2))}}})
    assert opt.names[-1] == "head/w"
    grads = {**nested(leaves(seed=1)), "head": {"w": np.ones((2, 2))}}
    opt.step(grads)
    opt.step(
        [[None] * 3, None, {"layers/0/b": np.ones(3), "dense/bias": None, "layers/1/b": None}, None]
    )
    assert dict(zip(opt.names, opt.counts.tolist())) == {
        **dict.fromkeys(SHAPES, 2), "layers/0/b": 3, "head/w": 1,
    }  # fmt: skip


def test_none_leaves_a_whole_part_out():
    opt = Optimizer(nested(leaves()))
    grads = {**nested(leaves(seed=1)), "layers": None}
    opt.step(grads)
    expected = [0 if name.startswith("layers") else 1 for name in opt.names]
    assert opt.counts.tolist() == expected
    opt.accumulate(grads)
    opt.accumulate({**grads, "dense": {"kernel": None, "bias": np.ones(3)}})
    opt.step()
    assert opt.counts.tolist() == [2 * count for count in expected]


@pytest.mark.parametrize("dtype", [np.float16, bfloat16])
@pytest.mark.parametrize("form", ["flat", "nested", "pairs", "items of parts"])
def test_copies_are_a_tree(form, dtype):
    params, copies = leaves(), leaves(dtype, seed=3)
    opt = Optimizer(nested(params), copies=FORMS[form](copies))
    opt.step(nested(leaves(seed=1)))
    for name in SHAPES:
        assert copies[name].tobytes() == params[name].astype(dtype).tobytes(), name


def test_copies_of_a_part_only():
    params, copy = leaves(), np.zeros((4, 3), np.float16)
    none_of_it = {"embed": None, "layers": None, "scale": None}
    opt = Optimizer(nested(params), copies={**none_of_it, "dense": {"kernel": copy, "bias": None}})
    opt.step(nested(leaves(seed=1)))
    assert copy.tobytes() == params["dense/kernel"].astype(np.float16).tobytes()
    layers = [(np.ones((2, 2), np.float32), np.ones(2, np.float32)) for _ in range(2)]
    copies = [None, (None, np.zeros(2, np.float16))]
    opt = Optimizer([{"params": [np.ones(3)]}, {"params": layers, "copies": copies}])
    assert opt.names == ("0", "1/0", "1/1", "2/0", "2/1")
    opt.step([np.ones(3), *(np.ones(shape) for shape in [(2, 2), 2, (2, 2), 2])])
    assert copies[1][1].tobytes() == layers[1][1].astype(np.float16).tobytes()


def test_masks_are_trees_too():
    mask = {
        "embed": True,
        "dense": {"kernel": True, "bias": False},
        "layers": [{"w": True, "b": False}] * 2,
        "scale": False,
    }
    opt = Optimizer(nested(leaves()), "optax", weight_decay_rate=0.1, weight_decay_mask=mask)
    assert [tensor.decays for tensor in opt.tensors] == [
        not (name == "scale" or name.rsplit("/")[-1].startswith("b")) for name in SHAPES
    ]
    with pytest.raises(ValueError, match=r"weight_decay_mask has no 'scale', must have every name"):
        Optimizer(
            nested(leaves()), weight_decay_mask={k: mask[k] for k in ("embed", "dense", "layers")}
        )


def test_names_are_those_of_every_other_method():
    opt = ran(nested(leaves()), [nested(leaves(seed=1))])
    new = np.ones((4, 3), np.float32)
    opt.replace("dense/kernel", new)
    assert opt.params["dense/kernel"] is new
    opt.resize("layers/1/w", np.ones((3, 5), np.float32), 1)
    opt.reset("dense/bias")
    opt.remove("scale")
    other = Optimizer({name: np.zeros_like(param) for name, param in opt.params.items()})
    other.load_state_dict(opt.state_dict(params=True))
    assert bits(other) == bits(opt)


def circle():
    tree = {"w": np.ones(3)}
    tree["again"] = [tree]
    return tree


def deep(leaf):
    for _ in range(5000):
        leaf = {"x": leaf}
    return leaf


REFUSED = [
    (
        {"a/b": np.ones(3), "a": {"b": np.ones(3)}},
        ValueError,
        "params['a/b'] is given twice, names must be unique",
    ),
    (
        [("a", np.ones(3)), ("a", np.ones(3))],
        ValueError,
        "params['a'] is given twice, names must be unique",
    ),
    ({"a": {"b": {3: np.ones(3)}}}, TypeError, "params has the name 3, must be a str"),
    (circle(), ValueError, "params['again/0'] contains itself, must be a tree"),
    ({"a": {}, "b": []}, ValueError, "params is empty, must be a mapping from names to arrays"),
    ({"a": {"b": [1.0]}}, TypeError, "params['a/b'] is a list, must be a numpy.ndarray"),
    ({"a": [[(2, 3.0)]]}, TypeError, "params['a'] is a list, must be a numpy.ndarray"),
    ({"a": ["b", 3.0]}, TypeError, "params['a/0'] is a str, must be a numpy.ndarray"),
    ({"a": memoryview(b"ab")}, TypeError, "params['a'] is a memoryview, must be a numpy.ndarray"),
    ({"a": {"b": None}}, TypeError, "params['a/b'] is a NoneType, must be a numpy.ndarray"),
    ({"a": {"b": "x"}}, TypeError, "params['a/b'] is a str, must be a numpy.ndarray"),
    ([{"w": np.ones(3), "lr": 0.1}], ValueError, "params[0]['params'] is missing, must be given"),
    ([{}], ValueError, "params[0]['params'] is missing, must be given"),
    (
        [{"w": np.ones(3)}, {"params": [np.ones(3)]}],
        ValueError,
        "params[0]['params'] is missing, must be given",
    ),
    (
        [{"params": {"a/b": np.ones(3)}}, {"params": {"a": {"b": np.ones(3)}}}],
        ValueError,
        "params['a/b'] is given twice",
    ),
]


@pytest.mark.parametrize("params, error, text", REFUSED)
def test_params_that_are_refused(params, error, text):
    with pytest.raises(error, match="^" + re.escape(text)):
        Optimizer(params)


def test_how_deep_a_tree_is_does_not_matter():
    opt = Optimizer(deep(np.ones(3)))
    opt.step(deep(np.ones(3)))
    assert opt.t == 1 and len(opt.names[0]) == 9999


def changed(tree, change):
    change(tree)
    return tree


GRADS_REFUSED = [
    (
        lambda g: g["dense"].pop("bias"),
        ValueError,
        "grads has no 'dense/bias', must have every name; None leaves a tensor out",
    ),
    (
        lambda g: g["dense"].update(biases=g["dense"].pop("bias")),
        ValueError,
        "grads has no 'dense/bias', but 'dense/biases', must have every name",
    ),
    (
        lambda g: g["layers"].append({"w": np.ones(3)}),
        ValueError,
        "grads has 'layers/2/w', must have names of params only",
    ),
    (
        lambda g: g.update({"dense/bias": np.ones(3)}),
        ValueError,
        "grads['dense/bias'] is given twice, names must be unique",
    ),
    (lambda g: g.update(x=g), ValueError, "grads['x'] contains itself, must be a tree"),
    (lambda g: g["dense"].update({3: 1}), TypeError, "grads has the name 3, must be a str"),
    (lambda g: g["dense"].update(bias=1.0), TypeError, "grads['dense/bias'] is a float, must be"),
    (
        lambda g: g["dense"].update(bias=np.ones(4)),
        ValueError,
        "grads['dense/bias'] has shape (4,), must be (3,)",
    ),
]


@pytest.mark.parametrize("change, error, text", GRADS_REFUSED)
@pytest.mark.parametrize("method", ["step", "accumulate"])
def test_gradients_that_are_refused_change_nothing(method, change, error, text):
    opt = ran(nested(leaves()), [leaves(seed=1)])
    before = bits(opt)
    with pytest.raises(error, match="^" + re.escape(text)):
        getattr(opt, method)(changed(nested(leaves(seed=2)), change))
    assert bits(opt) == before


def test_flat_names_that_would_be_parts_elsewhere_are_refused():
    opt = Optimizer({"a/b": np.ones(3)})
    with pytest.raises(ValueError, match=r"^grads has 'a', must have names of params only"):
        opt.step({"a/b": np.ones(3), "a": {"b": np.ones(3)}})


@pytest.mark.parametrize(
    "copies, text",
    [
        ({"dense": {"x": None}}, "copies has 'dense/x', must have names of its params only"),
        ({"nobody": None}, "copies has 'nobody', must have names of its params only"),
        ([("embed", None), ("embed", None)], "copies['embed'] is given twice"),
        ([None], "copies has 1 arrays, must have 8: None where there is no copy"),
    ],
)
def test_copies_that_are_refused(copies, text):
    with pytest.raises(ValueError, match="^" + re.escape(text)):
        Optimizer(nested(leaves()), copies=copies)


class OfTorch:
    """What a tensor of torch has."""

    def detach(self):
        return self

    def __array__(self, dtype=None, copy=None):
        return np.ones(3)


class OfJax:
    """What an array of jax has."""

    def __array__(self, dtype=None, copy=None):
        return np.ones(3)


@pytest.mark.parametrize("where", [lambda x: {"a": {"b": x}}, lambda x: {"a": [x]}, lambda x: [x]])
def test_an_array_of_another_library_is_told_how_to_become_one(where):
    with pytest.raises(
        TypeError, match=r"must be a numpy.ndarray of its memory, .*p\.detach\(\)\.numpy\(\)$"
    ):
        Optimizer(where(OfTorch()))
    with pytest.raises(
        TypeError, match=r"must be a numpy.ndarray: numpy\.array\(p\), .* read-only$"
    ):
        Optimizer(where(OfJax()))
