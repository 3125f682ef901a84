"""Other libraries' states without the libraries: layouts, and what is refused."""

import copy
import re
from collections import namedtuple

import numpy as np
import pytest

from adafactor_native import Optimizer, convert
from arrays import normal
from optimizers import digest_of_model

SHAPES = {"w": (4, 5), "b": (5,), "k": (6, 2, 5)}

FactoredState = namedtuple("FactoredState", "count v_row v_col v")
EmaState = namedtuple("EmaState", "count ema")
ScheduleState = namedtuple("ScheduleState", "count")
EmptyState = namedtuple("EmptyState", "")

OPTAX = {"learning_rate": 0.1, "min_dim_size_to_factor": 2, "momentum": 0.9}


def new_params(dtype=np.float64):
    return {name: normal(shape, dtype, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}


def started(convention, steps=3, dtype=np.float64, **arguments):
    """The kernel has no gradient at first."""
    opt = Optimizer(new_params(dtype), convention, **arguments)
    for t in range(steps):
        grads = {name: normal(shape, seed=10 * t + 5) for name, shape in SHAPES.items()}
        opt.step({**grads, "k": None if t == 0 else grads["k"]})
    return opt


def torch_state():
    return {
        "state": {
            0: {"step": 3.0, "row_var": np.full((4, 1), 0.5), "col_var": np.arange(5.0)[None]},
            1: {"step": 3, "variance": np.arange(5.0)},
            2: {
                "step": np.float32(2),
                "row_var": np.ones((6, 2, 1)),
                "col_var": np.full((6, 1, 5), 3.0),
            },
        },
        "param_groups": [{"params": [0, 1, 2], "lr": 0.1}],
    }


def huggingface_state():
    return {
        "state": {
            0: {
                "step": 3,
                "exp_avg_sq_row": np.full(4, 0.5),
                "exp_avg_sq_col": np.arange(5.0),
                "exp_avg": np.full((4, 5), 0.25, np.float32),
                "RMS": 0.5,
            },
            1: {"step": 3, "exp_avg_sq": np.arange(5.0), "exp_avg": np.ones(5)},
        },
        "param_groups": [{"params": [0]}, {"params": [1, 2]}],
    }


def optax_state():
    """The kernel's columns are its first axis, the largest; its rows are its last."""
    placeholder = np.zeros(1)
    return (
        FactoredState(
            count=np.array(3, np.int32),
            v_row={"w": np.full(4, 0.5), "b": placeholder, "k": np.arange(10.0).reshape(2, 5)},
            v_col={"w": np.arange(5.0), "b": placeholder, "k": np.arange(12.0).reshape(6, 2)},
            v={"w": placeholder, "b": np.arange(5.0), "k": placeholder},
        ),
        EmptyState(),
        ScheduleState(np.array(3, np.int32)),
        EmaState(
            np.array(3, np.int32),
            {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()},
        ),
    )


def test_torch_arrays_lose_the_axis_of_length_one():
    opt = started("torch")
    convert.load_torch(opt, torch_state())
    assert (opt.t, opt.counts.tolist()) == (3, [3, 3, 2])
    state = opt.state
    assert state["w"]["exp_row"].tolist() == [0.5] * 4
    assert state["w"]["exp_col"].tolist() == state["b"]["v"].tolist() == [0, 1, 2, 3, 4]
    assert (state["k"]["exp_row"] == 1).all() and (state["k"]["exp_col"] == 3).all()


def test_huggingface_arrays_and_a_param_that_was_never_stepped():
    opt = started("huggingface", beta1=0.9)
    convert.load_huggingface(opt, huggingface_state())
    assert (opt.t, opt.counts.tolist()) == (3, [3, 3, 0])
    state = opt.state
    assert state["w"]["exp_row"].tolist() == [0.5] * 4
    assert (state["w"]["m"] == 0.25).all() and (state["b"]["m"] == 1).all()
    assert not any(array.any() for array in state["k"].values())


def test_optax_arrays_have_all_axes_in_their_places():
    opt = started("optax", **OPTAX)
    convert.load_optax(opt, optax_state())
    assert (opt.t, opt.counts.tolist()) == (3, [3, 3, 3])
    state = opt.state
    np.testing.assert_array_equal(state["k"]["exp_row"], np.arange(10.0).reshape(2, 5))
    np.testing.assert_array_equal(state["k"]["exp_col"], np.arange(12.0).reshape(6, 2).T)
    assert state["b"]["v"].tolist() == [0, 1, 2, 3, 4] and (state["w"]["m"] == 1).all()


@pytest.mark.parametrize(
    "form",
    [
        lambda state: {str(i): part for i, part in enumerate(map(fields, state))},
        lambda state: [{"inner": [part]} for part in state],
        lambda state: (EmptyState(), {"hyper": {"lr": 0.1}, "inner_state": state}),
    ],
)
def test_optax_states_wrapped_or_as_dicts(form):
    one, other = (started("optax", **OPTAX) for _ in range(2))
    state = form(optax_state())
    convert.load_optax(one, state)
    convert.load_optax(other, optax_state())
    assert digest_of_model(one) == digest_of_model(other)
    assert repr(convert.to_optax(one, state)) == repr(state)
    one.step(new_params())
    assert repr(convert.to_optax(one, state)).count("array(4, dtype=int32)") == 3


def fields(state):
    return state._asdict()


def test_optax_trees_of_other_kinds():
    opt = Optimizer({"a/w": np.ones(3), "a/b/0": np.ones(2)}, "optax")
    trees = [{"a": {"w": np.full(n, 2.0), "b": [np.full(m, 3.0)]}} for n, m in ((1, 1), (3, 2))]
    state = FactoredState(7, trees[0], trees[0], trees[1])
    convert.load_optax(opt, state)
    assert (opt.t, opt.state["a/b/0"]["v"].tolist()) == (7, [3.0, 3.0])
    opt.state["a/w"]["v"][...] = 5
    back = convert.to_optax(opt, state)
    assert back.v["a"]["w"].tolist() == [5.0] * 3 and back.v_row is not None
    dotted = Optimizer({"a.w": np.ones(3), "a.b.0": np.ones(2)}, "optax")
    convert.load_optax(dotted, state, separator=".")
    assert dotted.state["a.w"]["v"].tolist() == [2.0] * 3
    single = Optimizer([np.ones(3)], "optax")
    convert.load_optax(single, FactoredState(1, np.zeros(1), np.zeros(1), np.ones(3)))
    assert single.state["0"]["v"].tolist() == [1.0] * 3


WAYS = {
    "torch": ({}, lambda opt, array=None: convert.to_torch(opt, array), convert.load_torch),
    "huggingface": (
        {"beta1": 0.9},
        lambda opt, array=None: convert.to_huggingface(opt, array),
        convert.load_huggingface,
    ),
    "optax": (
        OPTAX,
        lambda opt, array=None: convert.to_optax(opt, optax_state(), array),
        convert.load_optax,
    ),
}


@pytest.mark.parametrize("library", WAYS)
def test_there_and_back(library):
    arguments, to, load = WAYS[library]
    opt = started(library, **arguments)
    opt._tensors.set_counts(3, 0, [3, 3, 3 if library == "optax" else 2])
    twin = Optimizer({name: x.copy() for name, x in opt.params.items()}, library, **arguments)
    before = digest_of_model(opt)
    state = to(opt)
    assert digest_of_model(opt) == before
    load(twin, state)
    if library == "optax":  # its first moment is float32
        for tensor in (*opt.tensors, *twin.tensors):
            tensor.m[...] = tensor.m.astype(np.float32)
    assert digest_of_model(twin) == digest_of_model(opt)
    twin.step({name: np.ones(shape) for name, shape in SHAPES.items()})
    load(opt, state)
    if library != "optax":
        assert digest_of_model(opt) == before


@pytest.mark.parametrize("library", WAYS)
def test_array_makes_every_array_and_owns_it(library):
    arguments, to, _ = WAYS[library]
    opt = started(library, **arguments)
    made = []
    to(opt, lambda x: made.append(x) or x)
    assert made and all(type(x) is np.ndarray for x in made)
    kept = [array for state in opt.state.values() for array in state.values()]
    assert not any(np.shares_memory(x, y) for x in made for y in kept)
    with pytest.raises(TypeError, match="array is a str, must be a callable or None"):
        to(opt, "torch")


def test_hyper_parameters_as_they_are_at_the_next_step():
    opt = started("torch", lr=lambda t: 0.5 / t, weight_decay=0.25, d=2.0)
    (group,) = convert.to_torch(opt)["param_groups"]
    assert group == {
        "lr": 0.125,
        "beta2_decay": -0.8,
        "eps": (None, 1e-3),
        "d": 2.0,
        "weight_decay": 0.25,
        "foreach": None,
        "maximize": False,
        "params": [0, 1, 2],
    }
    opt = started("huggingface", lr=0.5, relative_step=False, beta1=0.5)
    (group,) = convert.to_huggingface(opt)["param_groups"]
    assert (group["lr"], group["beta1"], group["eps"]) == (0.5, 0.5, (1e-30, 1e-3))
    (group,) = convert.to_huggingface(started("huggingface"))["param_groups"]
    assert (group["lr"], group["relative_step"]) == (None, True)


def test_statistics_leave_in_the_dtype_of_param():
    opt = started("torch", dtype=np.float32)
    state = convert.to_torch(opt)["state"]
    assert {x.dtype for one in state.values() for x in one.values()} == {np.dtype(np.float32)}
    state = convert.to_huggingface(started("huggingface", dtype=np.float32))["state"]
    assert state[0]["exp_avg_sq_row"].dtype == np.float32 and state[0]["step"] == 3


def changed(state, change):
    state = copy.deepcopy(state())
    return change(state) or state


def refused(opt, error, text, load, *arguments):
    before = digest_of_model(opt)
    with pytest.raises(error, match="^" + re.escape(text)) as caught:
        load(opt, *arguments)
    assert caught.type is error
    assert digest_of_model(opt) == before


BAD_TORCH = [
    (lambda s: [s], ValueError, "state_dict must be a mapping with 'state' and 'param_groups'"),
    (
        lambda s: s.pop("state") and None,
        ValueError,
        "state_dict must be a mapping with 'state' and",
    ),
    (lambda s: s["param_groups"].clear(), ValueError, "state_dict has 0 params, must have 3"),
    (
        lambda s: s["state"][1].pop("step") and None,
        ValueError,
        "state_dict['state'][1] has 'variance', must have 'step', 'variance' for params['b']",
    ),
    (
        lambda s: s["state"][1].update(exp_avg=0),
        ValueError,
        "state_dict['state'][1] has 'step', 'variance', 'exp_avg', must have 'step', 'variance'",
    ),
    (
        lambda s: s["state"].update({0: s["state"][1]}),
        ValueError,
        "state_dict['state'][0] has 'step', 'variance', must have 'step', 'row_var', 'col_var' for",
    ),
    (
        lambda s: s["state"][0].update(row_var=np.ones(4)),
        ValueError,
        "state_dict['state'][0]['row_var'] has shape (4,), must be (4, 1)",
    ),
    (
        lambda s: s["state"][2].update(col_var=np.ones((6, 1, 5), int)),
        TypeError,
        "state_dict['state'][2]['col_var'] has dtype int64, must be one that float64 can hold",
    ),
    (
        lambda s: s["state"][2].update(step=-1),
        ValueError,
        "state_dict['state'][2]['step'] is -1.0, must be an int >= 0",
    ),
    (
        lambda s: s["state"][2].update(step=np.nan),
        ValueError,
        "state_dict['state'][2]['step'] is nan, must be an int >= 0",
    ),
]


@pytest.mark.parametrize("change, error, text", BAD_TORCH)
def test_bad_states_of_torch(change, error, text):
    refused(started("torch"), error, text, convert.load_torch, changed(torch_state, change))


BAD_OPTAX = [
    (lambda s: s[1:], ValueError, "state has 0 parts with the fields count, v, v_col, v_row, must"),
    (
        lambda s: (s, s),
        ValueError,
        "state has 2 parts with the fields count, v, v_col, v_row, must",
    ),
    (lambda s: s[:1], ValueError, "state has no EmaState, must have one, as beta1 is here"),
    (lambda s: s[0].v.pop("b") is None, ValueError, "v of state has the names 'w', 'k', must have"),
    (
        lambda s: s[3].ema.update(x=0),
        ValueError,
        "ema of state has the names 'w', 'b', 'k', 'x', m",
    ),
    (
        lambda s: s[0].v_row.update(k=np.ones((5, 2))),
        ValueError,
        "v_row['k'] of state has shape (5, 2), must be (2, 5)",
    ),
    (
        lambda s: s[0].v_row.update(w=None),
        ValueError,
        "v_row['w'] of state has shape (), must be (4,)",
    ),
    (
        lambda s: (s[0]._replace(count=0.5), *s[1:]),
        ValueError,
        "count of state is 0.5, must be an int >= 0",
    ),
]


@pytest.mark.parametrize("change, error, text", BAD_OPTAX)
def test_bad_states_of_optax(change, error, text):
    state = changed(optax_state, lambda s: None if (new := change(s)) in (None, False) else new)
    refused(started("optax", **OPTAX), error, text, convert.load_optax, state)


def test_moments_are_not_narrowed():
    opt = started("huggingface", dtype=np.float32, beta1=0.9)
    text = "state_dict['state'][1]['exp_avg'] has dtype float64, must be one that float32 can hold"
    refused(opt, TypeError, text, convert.load_huggingface, huggingface_state())


def test_other_names_and_axes_are_refused():
    text = "names is ['w', 'b'], must be all of ['w', 'b', 'k'] in some order"
    refused(started("torch"), ValueError, text, convert.load_torch, torch_state(), ["w", "b"])
    text = "params['k'] is factored over the axes None, must be over its last two if it has two, as"
    opt = started("torch", factored_axes="matrix")
    refused(opt, ValueError, text, convert.load_torch, torch_state())
    text = "params['w'] has a first moment, must have none as in torch"
    refused(started("torch", beta1=0.9), ValueError, text, convert.load_torch, torch_state())
    text = "state has an EmaState, must have none, as beta1 is here"
    plain = started("optax", min_dim_size_to_factor=2)
    refused(plain, ValueError, text, convert.load_optax, optax_state())


def test_what_cannot_be_said_there():
    for convention, arguments, text in [
        ("huggingface", {}, "convention is 'huggingface', must be 'torch'"),
        ("torch", {"decay_offset": 3}, "decay_offset is 3, must be 0 in a state for torch, which"),
        ("torch", {"eps_mode": "both"}, "eps_mode is 'both', must be 'clamp' in a state for torch"),
        ("torch", {"weight_decay_mask": ["w"]}, "weight_decay_mask is frozenset({'w'}), must be"),
    ]:
        refused(started(convention, **arguments), ValueError, text, convert.to_torch)
    text = "lr is 0.5, must be 0.01 in a state for huggingface, which cannot say it"
    opt = started("huggingface")
    opt.param_groups[0]["lr"] = 0.5
    refused(opt, ValueError, text, convert.to_huggingface)
    text = "v_row['k'] of like has shape (2, 5), must be (5, 2)"
    other = Optimizer({**new_params(), "k": np.ones((5, 2, 5))}, "optax", **OPTAX)
    refused(other, ValueError, text, convert.to_optax, optax_state())
    text = "like has 0 parts with the fields"
    refused(other, ValueError, text, convert.to_optax, ())


@pytest.mark.parametrize(
    ("convention", "options"), [("torch", {}), ("huggingface", {"relative_step": False})]
)
def test_statistics_of_half_precision_leave_in_float32(convention, options):
    """A float16 would make zeros of them."""
    params = {"w": normal((4, 3), np.float16), "b": normal(3, np.float16)}
    opt = Optimizer(params, convention, lr=1e-3, **options)
    grads = {name: normal(x.shape, np.float16, seed=1, scale=1e-4) for name, x in params.items()}
    opt.step(grads)
    there = getattr(convert, f"to_{convention}")(opt)
    kept = [x for x in there["state"][0].values() if isinstance(x, np.ndarray) and x.ndim]
    assert kept and all(x.dtype == np.float32 and x.all() for x in kept)
    twin = copy.deepcopy(opt)
    getattr(convert, f"load_{convention}")(twin, there)
    for name in params:
        for kind, array in opt.state[name].items():
            np.testing.assert_allclose(twin.state[name][kind], array, rtol=1e-7)
