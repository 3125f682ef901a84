"""Tensors that are replaced, resized, removed and reset in the middle of a run.

Each run goes on beside a reference that had the same history: an array overwritten in place, or an
optimizer made anew with the state put together by hand.
"""

import copy
import json
import pickle
import sys

import ml_dtypes
import numpy as np
import pytest

from adafactor_native import Optimizer
from adafactor_native.conventions import CONVENTIONS

BF16 = np.dtype(ml_dtypes.bfloat16)
SHAPES = {"w": (4, 6), "b": (6,), "k": (2, 3, 4), "s": ()}
FACTORED = {"factored_axes": "last_two", "min_dim_size_to_factor": 2}
# dtype of params, arguments
KINDS = {
    "plain": (np.float32, {}),
    "float64": (np.float64, {"beta1": 0.9}),
    "momentum": (np.float32, {"beta1": 0.9}),
    "bfloat16 momentum": (np.float32, {"beta1": 0.9, "momentum_dtype": "bfloat16"}),
    "masters": (BF16, {"masters": "float32", "beta1": 0.9}),
    "masters of float16": (np.float16, {"masters": "float32"}),
    "split": (BF16, {"masters": "split"}),
    "stochastic": (BF16, {"rounding": "stochastic"}),
    "copies": (np.float32, {}),
    "carried": (np.float32, {"carry_param_rms": True}),
}


def model(dtype=np.float32, seed=0, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(rng.standard_normal(shape), np.float64).astype(dtype)
        for name, shape in shapes.items()
    }


def made(kind, params, convention="paper"):
    arguments = {**KINDS[kind][1], **({"lr": 0.05} if convention in ("t5x", "big_vision") else {})}
    if kind == "copies":
        arguments["copies"] = {name: x.astype(BF16) for name, x in params.items()}
    return Optimizer(params, convention, **FACTORED, **arguments)


def run(opt, times):
    for t in times:
        shapes = {name: param.shape for name, param in opt.params.items()}
        opt.step(model(seed=100 + t, shapes=shapes))
    return opt


def values(opt):
    """Return all that a run depends on, to the bit."""
    state = opt.state_dict(params=True)
    header = json.loads(bytes(state.pop("header")))
    copies = {
        f"copy/{tensor.name}": tensor.copy.tobytes()
        for tensor in opt.tensors
        if tensor.copy is not None
    }
    state = {key: (x.shape, x.tobytes()) for key, x in sorted(state.items()) if key != "t"}
    counts = dict(zip(opt.names, opt.counts.tolist()))
    return {**state, **copies, "counts": counts, "t": header["t"], "groups": header["groups"]}


def overwrite(opt, name, new):
    """Do to an array in place what `replace` does by another."""
    tensor = next(tensor for tensor in opt.tensors if tensor.name == name)
    tensor.param[...] = new
    if tensor.master is not None:
        tensor.master[...] = new
    if tensor.low is not None:
        tensor.low[...] = 0
    if tensor.copy is not None:
        tensor.copy[...] = new.astype(BF16)
    opt.load_state_dict(opt.state_dict())  # the next step carries no RMS over


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_replaced_array_goes_on_as_an_overwritten_one(convention, kind, name):
    one = run(made(kind, model(KINDS[kind][0]), convention), range(3))
    two = copy.deepcopy(one)
    old = one.params[name]
    new = np.asarray(old * old.dtype.type(-3))
    one.replace(name, new)
    overwrite(two, name, new)
    before = old.tobytes()
    assert one.params[name] is new and one.counts.tolist() == [3, 3, 3, 3]
    assert values(one) == values(two)
    run(one, range(3, 6))
    run(two, range(3, 6))
    assert values(one) == values(two)
    assert old.tobytes() == before and new.tobytes() != before


@pytest.mark.parametrize("kind", KINDS)
def test_a_replaced_array_of_the_same_values_changes_no_bit(kind):
    one = run(made(kind, model(KINDS[kind][0])), range(3))
    two = copy.deepcopy(one)
    for name, param in one.params.items():
        one.replace(name, param.copy())
    assert values(one) == values(two)
    run(one, range(3, 6))
    run(two, range(3, 6))
    assert values(one) == values(two)


@pytest.mark.parametrize("kind", ["split", "masters", "momentum"])
def test_a_replacement_of_other_strides(kind):
    dtype = KINDS[kind][0]
    one = run(made(kind, model(dtype)), range(3))
    two = copy.deepcopy(one)
    new = np.zeros((4, 12), dtype)[:, ::-2]
    new[...] = one.params["w"]
    one.replace("w", new)
    assert values(one) == values(two)
    run(one, range(3, 5))
    run(two, range(3, 5))
    for mine, theirs in zip(one.params.values(), two.params.values()):
        pair = (np.asarray(x, np.float64) for x in (mine, theirs))
        np.testing.assert_allclose(*pair, rtol=2**-7)


def test_a_copy_may_be_replaced_too():
    opt = made("copies", model())
    used = np.zeros((4, 6), np.float16)
    opt.replace("w", opt.params["w"] * 2, copy=used)
    np.testing.assert_array_equal(used, opt.params["w"].astype(np.float16))
    run(opt, range(1))
    np.testing.assert_array_equal(used, opt.params["w"].astype(np.float16))


def lengthened(x, axis, n, fill):
    """Return x with n lines: the first, or more of them that are `fill`."""
    kept = x[(slice(None),) * axis + (slice(n),)]
    shape = list(x.shape)
    shape[axis] = max(0, n - x.shape[axis])
    return np.concatenate([kept, np.broadcast_to(fill, shape).astype(x.dtype)], axis)


def mean(x, axis):
    return x.mean(axis, keepdims=True)


# name, axis, new length -> the statistics by hand
RESIZED = {
    ("w", 0, 7): lambda s: (lengthened(s["exp_row"], 0, 7, mean(s["exp_row"], 0)), s["exp_col"]),
    ("w", -1, 9): lambda s: (s["exp_row"], lengthened(s["exp_col"], 0, 9, mean(s["exp_col"], 0))),
    ("w", 0, 2): lambda s: (
        s["exp_row"][:2],
        s["exp_col"] * (s["exp_row"][:2].mean() / s["exp_row"].mean()),
    ),
    ("b", 0, 8): lambda s: (lengthened(s["v"], 0, 8, mean(s["v"], 0)),),
    ("b", 0, 5): lambda s: (s["v"][:5],),
    ("k", 0, 3): lambda s: tuple(
        lengthened(s[kind], 0, 3, mean(s[kind], 0)) for kind in ("exp_row", "exp_col")
    ),
    ("k", 0, 1): lambda s: (s["exp_row"][:1], s["exp_col"][:1]),
    ("k", 1, 5): lambda s: (lengthened(s["exp_row"], 1, 5, mean(s["exp_row"], 1)), s["exp_col"]),
    ("k", 2, 2): lambda s: (
        s["exp_row"] * (mean(s["exp_col"][:, :2], 1) / mean(s["exp_col"], 1)),
        s["exp_col"][:, :2],
    ),
}


@pytest.mark.parametrize("change", RESIZED, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_resized_array_goes_on_as_with_a_state_put_together_by_hand(convention, kind, change):
    name, axis, n = change
    dtype = KINDS[kind][0]
    opt = run(made(kind, model(dtype), convention), range(3))
    old = opt.params[name]
    new = lengthened(old, axis % old.ndim, n, old.dtype.type(0.25))
    state = opt.state_dict()
    own = opt.state[name]

    by_hand = dict(zip([k for k in ("exp_row", "exp_col", "v") if k in own], RESIZED[change](own)))
    for one, fill in (("m", 0), ("master", 0.25), ("low", 0)):
        if one in own:
            by_hand[one] = lengthened(own[one], axis % old.ndim, n, fill)
    reference = made(
        kind, {key: (new if key == name else x).copy() for key, x in opt.params.items()}, convention
    )
    header = json.loads(bytes(reference.state_dict()["header"]))
    header["t"] = 3
    state["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    for one, array in by_hand.items():
        bits = np.uint16 if array.dtype == BF16 else array.dtype
        state[f"{one}/{name}"] = np.ascontiguousarray(array).view(bits)
    reference.load_state_dict(state)

    tensor = next(tensor for tensor in opt.tensors if tensor.name == name)
    used = None if tensor.copy is None else np.zeros(new.shape, BF16)
    opt.resize(name, new, axis, copy=used)
    assert opt.params[name] is new and opt.counts.tolist() == [3, 3, 3, 3]
    assert values(opt) == values(reference)
    run(opt, range(3, 6))
    run(reference, range(3, 6))
    assert values(opt) == values(reference)


def second_moment(state):
    rows, cols = state["exp_row"], state["exp_col"]
    return rows[..., :, None] * cols[..., None, :] / rows.mean(-1)[..., None, None]


@pytest.mark.parametrize("axis, n", [(0, 2), (0, 9), (1, 3), (1, 8)])
def test_the_second_moment_of_elements_that_stay_stays(axis, n):
    opt = run(made("plain", model()), range(3))
    before = second_moment(opt.state["w"])
    shape = [4, 6]
    shape[axis] = n
    opt.resize("w", np.ones(shape, np.float32), axis)
    after = second_moment(opt.state["w"])
    both = tuple(slice(min(a, b)) for a, b in zip(before.shape, after.shape))
    np.testing.assert_allclose(after[both], before[both], rtol=1e-14)


def test_what_is_factored_otherwise_in_the_new_shape_is_factored_anew():
    opt = Optimizer({"w": np.ones((3, 6)), "b": np.ones(3)}, min_dim_size_to_factor=4)
    run(opt, range(3))
    v = opt.state["w"]["v"].copy()
    opt.resize("w", np.ones((5, 6)))
    grown = np.vstack([v, [v.mean(0)] * 2])
    assert opt.state["w"].keys() == {"exp_row", "exp_col"}
    np.testing.assert_array_equal(opt.state["w"]["exp_row"], grown.mean(1))
    np.testing.assert_array_equal(opt.state["w"]["exp_col"], grown.mean(0))
    again = Optimizer({"w": np.ones((5, 6)), "b": np.ones(3)}, min_dim_size_to_factor=4)
    again.load_state_dict(opt.state_dict(params=True))
    run(opt, range(3, 5))
    run(again, range(3, 5))
    assert values(opt) == values(again)

    factored = second_moment(opt.state["w"])
    opt.resize("w", np.ones((2, 6)))
    assert opt.state["w"].keys() == {"v"}
    np.testing.assert_allclose(opt.state["w"]["v"], factored[:2], rtol=1e-14)


def test_the_two_largest_axes_may_change_places():
    opt = Optimizer([np.ones((2, 3, 4))], "optax", min_dim_size_to_factor=2)
    run(opt, range(3))
    before = second_moment(opt.state["0"])  # batch, rows, cols
    opt.resize("0", np.ones((2, 9, 4)), 1)
    assert opt.tensors[0].axes == (2, 1)
    after = np.swapaxes(second_moment(opt.state["0"]), 1, 2)
    np.testing.assert_allclose(after[:, :3], before, rtol=1e-14)
    again = Optimizer([opt.params["0"].copy()], "optax", min_dim_size_to_factor=2)
    again.load_state_dict(opt.state_dict())
    assert values(run(opt, range(2))) == values(run(again, range(2)))


@pytest.mark.parametrize("shapes", [((0, 3), (4, 3)), ((4, 3), (0, 3)), ((0,), (2,))])
def test_without_elements_before_or_after_it_begins_as_new(shapes):
    before, after = shapes
    opt = run(Optimizer({"e": np.ones(before), "b": np.ones(3)}, beta1=0.9), range(3))
    opt.resize("e", np.ones(after))
    assert opt.counts.tolist() == [0, 3]
    assert not any(array.any() for array in opt.state["e"].values())
    run(opt, range(3, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_a_removed_tensor_leaves_the_others_as_they_are(kind):
    dtype = KINDS[kind][0]
    one = run(made(kind, model(dtype)), range(3))
    two = copy.deepcopy(one)
    one.remove("b")
    assert one.names == ("w", "k", "s") and one.counts.tolist() == [3, 3, 3]
    assert one.param_groups[0]["names"] == one.names and "b" not in one.state
    run(one, range(3, 3))
    for t in range(3, 6):
        grads = model(seed=t)
        two.step({**grads, "b": None})
        one.step({name: grads[name] for name in one.names})
    theirs = {key: x for key, x in values(two).items() if not key.endswith("/b")}
    theirs["counts"].pop("b")
    assert values(one) == theirs

    fresh = made(kind, {name: x.copy() for name, x in one.params.items()})
    fresh.load_state_dict(one.state_dict(params=True))
    third = pickle.loads(pickle.dumps(one))
    for opt in (one, fresh, third):
        run(opt, range(6, 8))
    assert values(one) == values(fresh) == values(third)


def test_a_group_without_tensors_stays_and_names_do_not_come_back():
    groups = [{"params": [np.ones(2)]}, {"params": [np.ones(3), np.ones(4)], "lr": 0.5}]
    opt = Optimizer(groups, weight_decay=0.1, weight_decay_mask=["0", "2"])
    opt.remove("0")
    assert opt.names == ("1", "2") and [len(g["names"]) for g in opt.param_groups] == [0, 2]
    opt.step([None, [np.ones(3), np.ones(4)]])
    opt.add_param_group({"params": [np.ones(5)]})
    assert opt.names == ("1", "2", "3")
    assert pickle.loads(pickle.dumps(opt)).names == opt.names
    opt.add_param_group({"params": {"0": np.ones(5)}})
    assert [tensor.decays for tensor in opt.tensors] == [False, True, False, True]
    for name in ("1", "2", "3"):
        opt.remove(name)
    with pytest.raises(ValueError, match=r"params\['0'\] is the only tensor"):
        opt.remove("0")


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_tensor_that_is_reset_goes_on_as_a_new_one(convention, kind, name):
    one = run(made(kind, model(KINDS[kind][0]), convention), range(3))
    two = copy.deepcopy(one)
    one.reset(name)
    tensor = next(tensor for tensor in two.tensors if tensor.name == name)
    for which, array in tensor.state.items():
        array[...] = tensor.param if which == "master" else 0
    counts = [0 if own == name else 3 for own in two.names]
    state = two.state_dict()
    state["t"] = np.array(counts)
    two.load_state_dict(state)
    assert one.counts.tolist() == counts
    run(one, range(3, 6))
    run(two, range(3, 6))
    assert values(one) == values(two)


ROWS = [1, -1, [0, 2], slice(1, 3), np.array([True, False, True, False]), np.uint8(2)]


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_reset_go_on_as_those_of_resize(kind, rows):
    """The rows that stay, put first, are the array that was shortened, then lengthened again."""
    dtype = KINDS[kind][0]
    opt = run(made(kind, model(dtype)), range(3))
    other = copy.deepcopy(opt)
    fresh = np.zeros(4, bool)
    fresh[rows] = True
    opt.params["w"][fresh] = dtype(0.25) if dtype is not BF16 else BF16.type(0.25)
    opt.reset("w", rows)

    stays = np.flatnonzero(~fresh)
    for which, array in other.state["w"].items():
        mine = opt.state["w"][which]
        if which == "exp_row":
            expected = np.full(4, array[stays].mean())
            expected[stays] = array[stays]
        elif which == "exp_col":
            expected = array * (
                other.state["w"]["exp_row"][stays].mean() / other.state["w"]["exp_row"].mean()
            )
        else:
            expected = array.copy()
            expected[fresh] = 0.25 if which == "master" else 0
        assert mine.tobytes() == expected.tobytes(), which
    for tensor in opt.tensors:
        if tensor.copy is not None:
            np.testing.assert_array_equal(tensor.copy, tensor.param.astype(BF16))
    assert opt.counts.tolist() == [3, 3, 3, 3]
    fourth = copy.deepcopy(opt)
    assert values(run(opt, range(3, 5))) == values(run(fourth, range(3, 5)))


def test_no_rows_and_all_rows():
    opt = run(made("momentum", model()), range(3))
    before = values(opt)
    opt.reset("w", [])
    opt.reset("w", slice(0, 0))
    assert values(opt) == before
    opt.reset("w", range(4))
    assert opt.counts.tolist() == [0, 3, 3, 3]
    assert not any(array.any() for array in opt.state["w"].values())


def test_columns_and_elements_are_reset_by_axis():
    opt = run(made("momentum", model()), range(3))
    cols, v = (opt.state[name][kind].copy() for name, kind in (("w", "exp_col"), ("b", "v")))
    opt.reset("w", [5], axis=1)
    np.testing.assert_array_equal(opt.state["w"]["exp_col"][:5], cols[:5])
    assert opt.state["w"]["exp_col"][5] == cols[:5].mean() and not opt.state["w"]["m"][:, 5].any()
    opt.reset("b", 0)
    np.testing.assert_array_equal(opt.state["b"]["v"], [v[1:].mean(), *v[1:]])


def read_only():
    array = np.ones((4, 6), np.float32)
    array.flags.writeable = False
    return array


WRONG = {
    "replace unknown": (lambda o: o.replace("ww", np.ones(1)), "name is 'ww', did you mean 'w'?"),
    "replace no name": (lambda o: o.replace(0, np.ones(1)), "name is a int, must be a str"),
    "replace list": (lambda o: o.replace("b", [1.0] * 6), "array is a list, must be a numpy"),
    "replace dtype": (lambda o: o.replace("b", np.ones(6)), "dtype float64, must be float32"),
    "replace shape": (lambda o: o.replace("b", np.ones(7, "f4")), r"shape \(7,\), must be \(6,\)"),
    "replace read-only": (lambda o: o.replace("w", read_only()), "read-only, must be writeable"),
    "replace shared": (lambda o: o.replace("b", o.params["w"][0]), "overlaps"),
    "replace copy": (lambda o: o.replace("b", np.ones(6, "f4"), copy=np.ones(5, "f2")), "shape"),
    "replace no copy": (
        lambda o: o.replace("s", np.ones((), "f4"), copy=np.ones((), "f2")),
        r"copy must be None, for params\['s'\] has no copy",
    ),
    "resize unknown": (lambda o: o.resize("q", np.ones(1)), "must be one of opt.names"),
    "resize axis": (lambda o: o.resize("b", np.ones(8, "f4"), 1), "axis is 1, must be an axis"),
    "resize axis type": (lambda o: o.resize("b", np.ones(8, "f4"), 0.0), "axis is 0.0, must"),
    "resize other axis": (lambda o: o.resize("w", np.ones((4, 7), "f4"), 0), "but for axis 0"),
    "resize scalar": (lambda o: o.resize("s", np.ones(2, "f4"), 0), "axis is 0, must be an axis"),
    "resize copy": (lambda o: o.resize("b", np.ones(8, "f4")), "copy is None, must be an array"),
    "resize old copy": (
        lambda o: o.resize("b", np.ones(8, "f4"), copy=o.tensors[1].copy),
        r"copies\['b'\] has shape \(6,\), must be \(8,\)",
    ),
    "remove unknown": (lambda o: o.remove("B"), "did you mean 'b'?"),
    "reset unknown": (lambda o: o.reset("v"), "name is 'v', must be one of opt.names"),
    "reset row": (lambda o: o.reset("w", [1, 4]), "rows has 4, must be an int, a slice"),
    "reset float": (lambda o: o.reset("w", 1.0), "rows is 1.0, must be an int, a slice"),
    "reset bool": (lambda o: o.reset("w", True), "rows is True, must be an int, a slice"),
    "reset mask": (lambda o: o.reset("w", [True] * 3), "must be an int, a slice, ints or 4 bools"),
    "reset ragged": (lambda o: o.reset("w", [[1], [1, 2]]), "must be an int, a slice"),
    "reset scalar": (lambda o: o.reset("s", 0), "axis is 0, must be an axis of"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_refused_changes_nothing(wrong):
    act, message = WRONG[wrong]
    params = model()
    copies = {name: x.astype(np.float16) for name, x in params.items() if name != "s"}
    opt = run(Optimizer(params, copies=copies, beta1=0.9), range(3))
    other = copy.deepcopy(opt)
    before, tensors, groups = values(opt), opt.tensors, opt.param_groups
    with pytest.raises((TypeError, ValueError), match=message):
        act(opt)
    assert values(opt) == before and opt.tensors == tensors and opt.param_groups is groups
    assert values(run(opt, range(3, 5))) == values(run(other, range(3, 5)))


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")  # of NumPy 2.5
def test_an_array_of_another_tensor_that_was_reshaped_refuses_it_all():
    opt = run(Optimizer(model(), beta1=0.9), range(2))
    tensors = opt.tensors
    opt.state["b"]["m"].shape = (2, 3)
    for act in (
        lambda: opt.replace("w", opt.params["w"].copy()),
        lambda: opt.resize("w", np.ones((5, 6), np.float32)),
        lambda: opt.remove("w"),
        lambda: opt.reset("w"),
    ):
        with pytest.raises(ValueError, match=r"ms\['b'\] has shape"):
            act()
        assert opt.tensors == tensors


ACTS = {
    "replace": lambda opt: opt.replace("w", opt.params["w"].copy()),
    "resize": lambda opt: opt.resize("w", np.ones((5, 6), BF16)),
    "remove": lambda opt: opt.remove("w"),
    "reset": lambda opt: opt.reset("w"),
    "reset rows": lambda opt: opt.reset("w", [1]),
}


def interrupted(act, opt, at):
    """Act, but raise at one of its byte codes, where handlers of signals run; or return True."""
    codes = 0

    def count(frame, event, argument):
        nonlocal codes
        frame.f_trace_opcodes = True
        if event == "opcode":
            codes += 1
            if codes == at:
                raise KeyboardInterrupt
        return count

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 looks at it when tracing begins
    sys.settrace(count)
    try:
        act(opt)
    except KeyboardInterrupt:
        return False
    finally:
        sys.settrace(before)
    return True


@pytest.mark.parametrize("act", ACTS)
def test_a_signal_at_any_moment_leaves_all_as_it_was_or_as_it_will_be(act):
    kind = "masters"
    start = run(made(kind, model(BF16)), range(2))
    before = values(start)
    changed = copy.deepcopy(start)
    ACTS[act](changed)
    after = values(changed)
    finished, at, n_refused = False, 1, 0
    while not finished:
        opt = copy.deepcopy(start)
        finished = interrupted(ACTS[act], opt, at)
        found = values(opt)
        n_refused += not finished
        assert found in (before, after), at
        assert opt.param_groups[0]["names"] == opt.names and len(opt.counts) == len(opt.names)
        at += 11
    assert found == after and n_refused > 10


def test_schedules_and_groups_go_on():
    params = model()
    groups = [
        {"params": {"w": params["w"]}, "lr": lambda t: 1 / t},
        {"params": {name: params[name] for name in "bks"}, "lr": 0.5},
    ]
    opt = run(Optimizer(groups, relative_step=False), range(2))
    opt.resize("w", np.ones((5, 6), np.float32))
    opt.remove("k")
    assert run(opt, range(2, 3)).param_groups[0]["lr"](4) == 0.25
    assert opt._cell.lr == (1 / 3, 0.5) and opt.t == 3
    opt.param_groups[1]["lr"] = 0.25
    assert run(opt, range(3, 4))._cell.lr == (1 / 4, 0.25)


def test_a_step_that_is_under_way_is_not_disturbed():
    opt = Optimizer(model())
    for act in (lambda: opt.remove("w"), lambda: opt.reset("w")):
        with pytest.raises(RuntimeError, match="updated by another thread"):
            opt._tensors.alone(act)
    assert opt.names == tuple(SHAPES)


@pytest.mark.parametrize("change", ["replace", "resize", "remove", "reset"])
def test_accumulated_gradients_are_not_lost(change):
    param = np.ones((3, 2))
    opt = Optimizer({"w": param, "b": np.ones(2)}, "numpy")
    opt.accumulate({"w": np.ones((3, 2)), "b": np.ones(2)})
    arguments = {"replace": (param.copy(),), "resize": (np.ones((4, 2)), 0)}.get(change, ())
    with pytest.raises(ValueError, match="accumulated gradients wait for a step"):
        getattr(opt, change)("w", *arguments)
    assert opt.params["w"] is param and opt.names == ("w", "b")
    opt.step()
    getattr(opt, change)("w", *arguments)
