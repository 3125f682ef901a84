"""States that are loaded into another set-up by choice: names, tensors, storage, hyper-parameters.

Each test compares with a run that had the same history, or with the arrays that it must have.
"""

import re

import ml_dtypes
import numpy as np
import pytest

from adafactor_native import Optimizer
from test_hostile_states import mutated

BF16 = np.dtype(ml_dtypes.bfloat16)
SHAPES = {"w": (4, 6), "b": (6,), "k": (2, 3, 4)}


def model(dtype=np.float32, seed=0, prefix=""):
    rng = np.random.default_rng(seed)
    return {
        prefix + name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()
    }


def gradients(t, prefix=""):
    return model(seed=100 + t, prefix=prefix)


def run(opt, times, prefix=""):
    for t in times:
        opt.step(gradients(t, prefix))
    return opt


def bits(opt):
    return {key: array.tobytes() for key, array in opt.state_dict(params=True).items()}


def values(opt):
    return {key: x for key, x in bits(opt).items() if key not in ("header", "t")}


def copied(opt):
    return {name: param.copy() for name, param in opt.params.items()}


@pytest.mark.parametrize("params", [False, True])
@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("module.", ""),
        {f"module.{name}": name for name in SHAPES},
    ],
)
def test_renamed(rename, params):
    there = run(Optimizer(model(prefix="module."), beta1=0.9), range(3), "module.")
    here = Optimizer({name[7:]: param for name, param in copied(there).items()}, beta1=0.9)
    assert here.load_state_dict(there.state_dict(params), rename=rename) is None
    run(here, range(3, 6))
    run(there, range(3, 6), "module.")
    assert list(values(here).values()) == list(values(there).values())


def test_names_may_be_swapped():
    there = run(Optimizer({"a": np.ones(3), "b": np.full(3, 2.0)}), ())
    there.step({"a": np.ones(3), "b": np.full(3, 5.0)})
    here = Optimizer({"a": np.ones(3), "b": np.ones(3)})
    here.load_state_dict(there.state_dict(params=True), rename={"a": "b", "b": "a"})
    assert here.params["a"].tobytes() == there.params["b"].tobytes()
    assert here.state["b"]["v"].tobytes() == there.state["a"]["v"].tobytes()


@pytest.mark.parametrize("params", [False, True])
def test_what_matches_is_loaded_and_the_rest_is_told(params):
    there = run(Optimizer({**model(), "old": np.ones(2), "head": np.ones((3, 2))}), ())
    grads = {"old": np.ones(2), "head": np.ones((3, 2))}
    for t in range(3):
        there.step({**gradients(t), **grads})
    here = Optimizer(
        {
            "new": np.ones(7),
            **{name: there.params[name].copy() for name in SHAPES},
            "head": np.ones((5, 2)),
        }
    )
    report = here.load_state_dict(there.state_dict(params), strict=False)
    assert report.loaded == tuple(SHAPES)
    assert report.missing == ("new",) and report.unexpected == ("old",)
    assert report.mismatched == {"head": "shape was [3, 2], is [5, 2] here"}
    assert dict(zip(here.names, here.counts.tolist())) == {
        "new": 0,
        **dict.fromkeys(SHAPES, 3),
        "head": 0,
    }
    assert not here.state["head"]["exp_row"].any() and (here.params["head"] == 1).all()
    for t in range(3, 6):
        there.step({**gradients(t), **grads})
        here.step({**gradients(t), "new": np.ones(7), "head": np.ones((5, 2))})
    for name in SHAPES:
        assert here.params[name].tobytes() == there.params[name].tobytes()


def test_nothing_that_matches_is_an_error():
    there = run(Optimizer(model()), range(2))
    here = Optimizer(model(prefix="module."))
    before = bits(here)
    with pytest.raises(
        ValueError, match=r"none of which is like one of ours.*rename= changes names"
    ):
        here.load_state_dict(there.state_dict(), strict=False)
    assert bits(here) == before


def test_kept_hyper_parameters_are_the_new_scripts():
    there = run(Optimizer(model(), lr=0.5, max_grad_norm=3.0, seed=5), range(2))

    def schedule(t):
        return 0.25 / t

    here = Optimizer(copied(there), lr=schedule, clip_threshold=0.5, max_grad_norm=7.0, seed=9)
    with pytest.raises(ValueError, match="lr is a callable, must be as when the state was saved"):
        here.load_state_dict(there.state_dict())
    here.load_state_dict(there.state_dict(), keep=["lr", "max_grad_norm", "seed"])
    group = here.param_groups[0]
    assert group["lr"] is schedule and group["clip_threshold"] == 1.0
    assert (here.max_grad_norm, here.seed, here.t) == (7.0, 9, 2)
    there.param_groups[0]["lr"] = schedule
    there.max_grad_norm = 7.0
    run(here, range(2, 5))
    run(there, range(2, 5))
    assert values(here) == values(there)


def test_kept_groups_are_the_new_scripts():
    there = run(Optimizer(model(), lr=0.5), range(2))
    params = copied(there)
    groups = [
        {"params": {"b": params["b"]}, "lr": 0.25},
        {"params": {"w": params["w"], "k": params["k"]}, "weight_decay": 0.5},
    ]
    here = Optimizer(groups)
    with pytest.raises(ValueError, match=r"the number of groups was 1 .* keep=\['groups'\] keeps"):
        here.load_state_dict(there.state_dict())
    here.load_state_dict(there.state_dict(), keep=["groups"])
    assert [group["lr"] for group in here.param_groups] == [0.25, 1e-2]
    assert here.counts.tolist() == [2, 2, 2]
    for name, state in there.state.items():
        for kind, array in state.items():
            assert here.state[name][kind].tobytes() == array.tobytes()


def test_a_kept_mask_is_the_new_scripts():
    there = run(Optimizer(model(), weight_decay=0.1), range(2))
    here = Optimizer(copied(there), weight_decay=0.1, weight_decay_mask=["w"])
    with pytest.raises(ValueError, match="decays of params"):
        here.load_state_dict(there.state_dict())
    here.load_state_dict(there.state_dict(), keep=["weight_decay_mask"])
    assert [tensor.decays for tensor in here.tensors] == [True, False, False]


# Change of storage: arguments there, here, whether params are of half precision
STORAGE = {
    "momentum added": ({}, {"beta1": 0.9}, np.float32),
    "momentum dropped": ({"beta1": 0.9}, {}, np.float32),
    "momentum narrowed": ({"beta1": 0.9}, {"beta1": 0.9, "momentum_dtype": "bfloat16"}, np.float32),
    "momentum widened": ({"beta1": 0.9, "momentum_dtype": "bfloat16"}, {"beta1": 0.9}, np.float32),
    "masters on": ({}, {"masters": "float32"}, np.float16),
    "masters off": ({"masters": "float32"}, {}, np.float16),
    "split on": ({}, {"masters": "split"}, BF16),
    "split off": ({"masters": "split"}, {}, BF16),
    "split to masters": ({"masters": "split"}, {"masters": "float32"}, BF16),
    "masters to split": ({"masters": "float32"}, {"masters": "split"}, BF16),
    "masters and momentum": ({}, {"masters": "float32", "beta1": 0.9}, BF16),
}


@pytest.mark.parametrize("params", [False, True])
@pytest.mark.parametrize("change", STORAGE)
def test_storage_is_converted_by_choice_only(change, params):
    before, after, dtype = STORAGE[change]
    there = run(Optimizer(model(dtype), **before), range(3))
    here = Optimizer(copied(there), **after)
    state = there.state_dict(params)
    untouched = bits(here)
    with pytest.raises((TypeError, ValueError)):
        here.load_state_dict(state)
    assert bits(here) == untouched

    here.load_state_dict(state, convert=True)
    assert here.t == 3 and here.counts.tolist() == [3, 3, 3]
    for name, old in there.state.items():
        new = here.state[name]
        for kind in ("exp_row", "exp_col", "v"):
            assert (kind in new) == (kind in old)
            if kind in old:
                assert new[kind].tobytes() == old[kind].tobytes()
        if "m" in new and "m" in old:
            assert new["m"].tobytes() == old["m"].astype(new["m"].dtype).tobytes()
        elif "m" in new:
            assert not new["m"].any()
        param = there.params[name]
        if "master" in new and "low" not in old:
            np.testing.assert_array_equal(new["master"], param.astype(np.float32))
        if params and change == "split to masters":
            whole = wholes(param, old["low"])
            assert new["master"].tobytes() == whole.tobytes()
        if params and change == "masters to split":
            assert wholes(here.params[name], new["low"]).tobytes() == old["master"].tobytes()
        elif "low" in new:
            assert not new["low"].any()
    run(here, range(3, 5))


def wholes(param, low):
    bits = (param.view(np.uint16).astype(np.int64) << 16) + low.astype(np.int16)
    return bits.astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("masters", [("float32", "split"), ("split", "float32")])
def test_masters_of_the_other_kind_continue_with_the_same_numbers(masters):
    """The whole numbers are the same, so is every step of them, but for the clip's RMS(param)."""
    there = run(Optimizer(model(BF16), masters=masters[0], scale_parameter=False), range(3))
    here = Optimizer(model(BF16), masters=masters[1], scale_parameter=False)
    here.load_state_dict(there.state_dict(params=True), convert=True)
    run(there, range(3, 6))
    run(here, range(3, 6))
    for name in SHAPES:
        both = [
            opt.state[name]["master"]
            if "master" in opt.state[name]
            else wholes(opt.params[name], opt.state[name]["low"])
            for opt in (there, here)
        ]
        np.testing.assert_array_equal(*both)


def test_statistics_of_float32_are_widened():
    there = run(Optimizer(model()), range(3))
    state = there.state_dict()
    narrow = {key: x.astype(np.float32) if x.dtype == np.float64 else x for key, x in state.items()}
    here = Optimizer(copied(there))
    with pytest.raises(TypeError, match=r"has dtype float32, must be float64"):
        here.load_state_dict(narrow)
    here.load_state_dict(narrow, convert=True)
    assert here.state["b"]["v"].tobytes() == narrow["v/b"].astype(np.float64).tobytes()


def test_a_run_that_was_renamed_given_masters_and_a_new_learning_rate():
    """It ends where a run ends that had the same history under one name."""
    old = run(Optimizer(model(BF16, prefix="old."), lr=0.01), range(3), "old.")
    new = Optimizer(
        {name[4:]: param for name, param in copied(old).items()}, lr=0.002, masters="float32"
    )
    new.load_state_dict(
        old.state_dict(params=True),
        rename=lambda name: (
            name.removeprefix("old.") if hasattr(name, "removeprefix") else name[4:]
        ),
        keep=["lr"],
        convert=True,
    )
    run(new, range(3, 7))

    reference = run(Optimizer(model(BF16), lr=0.01), range(3))
    again = Optimizer(copied(reference), lr=0.002, masters="float32")
    for name, state in reference.state.items():
        for kind, array in state.items():
            again.state[name][kind][...] = array
    again._tensors.set_counts(3, 0, [3, 3, 3])
    run(again, range(3, 7))
    assert values(new) == values(again)


REFUSED = [
    ({"keep": "lr"}, TypeError, "keep is a str, must be a collection of names"),
    ({"keep": ["learning"]}, ValueError, "keep has 'learning', "),
    ({"keep": ["factored_axes"]}, ValueError, "keep has 'factored_axes', "),
    ({"rename": 3}, TypeError, "rename is a int, must be a mapping or a callable"),
    ({"rename": {"x": "w"}}, ValueError, "rename has 'x', must have names of the state only"),
    ({"rename": {"b": "w"}}, ValueError, "rename makes 'w' of 'b' and of 'w'"),
    ({"rename": lambda name: None}, TypeError, "rename of 'w' is a NoneType, must be a str"),
    ({"strict": 0}, TypeError, "strict is a int, must be a bool"),
    ({"convert": None}, TypeError, "convert is a NoneType, must be a bool"),
    ({"rename": {"b": "c"}}, ValueError, "state has no params['b'] and has params['c'], must"),
]


@pytest.mark.parametrize("options, error, text", REFUSED)
def test_choices_that_are_refused(options, error, text):
    opt = run(Optimizer(model()), range(2))
    state = run(Optimizer(model()), range(3)).state_dict()
    before = bits(opt)
    with pytest.raises(error, match="^" + re.escape(text)):
        opt.load_state_dict(state, **options)
    assert bits(opt) == before


@pytest.mark.parametrize("seed", range(300))
def test_hostile_states_are_refused_under_any_choice(seed):
    rng = np.random.default_rng(seed)
    masters, convert = rng.choice([None, "float32", "split"]), bool(rng.integers(2))
    there = run(Optimizer(model(BF16), beta1=0.5), range(2))
    here = run(Optimizer(model(BF16), beta1=0.5, masters=masters if convert else None), range(1))
    state = mutated(there.state_dict(params=bool(rng.integers(2))), rng)
    before = bits(here)
    options = {"strict": bool(rng.integers(2)), "convert": convert}
    if rng.integers(2):
        options["keep"] = ["lr", "groups"]
    try:
        here.load_state_dict(state, rename=str if rng.integers(2) else None, **options)
    except (TypeError, ValueError) as error:
        assert str(error) and bits(here) == before
    else:
        here.load_state_dict(here.state_dict(params=True))
