"""States that are wrong in any way are refused by a sentence, and change nothing."""

import json
import re
import signal

import ml_dtypes
import numpy as np
import pytest

from adafactor_native import AdaFactor, Optimizer

BF16 = np.dtype(ml_dtypes.bfloat16)
SHAPES = {"w": (4, 3), "b": (3,), "k": (2, 3, 4), "s": ()}
KINDS = {
    "plain": (np.float32, {}),
    "double": (np.float64, {"beta1": 0.9}),
    "masters": (np.float16, {"masters": "float32", "beta1": 0.9, "momentum_dtype": "bfloat16"}),
    "split": (BF16, {"masters": "split", "beta1": 0.9}),
    "last_two": (np.float32, {"convention": "torch"}),
    "optax": (np.float32, {"convention": "optax", "min_dim_size_to_factor": 2}),
}


def model(kind, steps=2, seed=0, **arguments):
    dtype, own = KINDS[kind]
    rng = np.random.default_rng(seed)
    params = {n: np.asarray(rng.standard_normal(s), dtype) for n, s in SHAPES.items()}
    opt = Optimizer(params, **own, **arguments)
    for _ in range(steps):
        opt.step({n: np.asarray(rng.standard_normal(s)) for n, s in SHAPES.items()})
    return opt


def array(steps=2, shape=(4, 3)):
    opt, param = AdaFactor(shape), np.ones(shape)
    for t in range(steps):
        opt.update(param, np.full(shape, t + 1.0))
    return opt


def bits(opt):
    state = opt.state_dict(params=True) if isinstance(opt, Optimizer) else opt.state_dict()
    return {key: value.tobytes() for key, value in state.items()}


def refused(opt, state, text=""):
    before = bits(opt)
    with pytest.raises((TypeError, ValueError), match=text):
        opt.load_state_dict(state)
    assert bits(opt) == before


def with_header(state, change):
    header = json.loads(state["header"].tobytes())
    change(header)
    return {**state, "header": np.frombuffer(json.dumps(header).encode(), np.uint8)}


HEADERS = [b"[" * 200_000, b'{"a":' * 200_000, b"", b"\xff\xfe", b"null", b"[]", b'"x"', b"1e999"]


@pytest.mark.parametrize("text", HEADERS)
@pytest.mark.parametrize("make", [lambda: model("plain"), array])
def test_headers_that_are_none(make, text):
    opt = make()
    state = {**opt.state_dict(), "header": np.frombuffer(text, np.uint8)}
    refused(opt, state, r"^state\['header'\] is (no JSON|not ours)")


VALUES = [10**400, -(10**400), 2**63 - 1, 2**63, -1, True, None, "3", 1.5, [1], {}, float("nan")]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("key", ["t", "skipped"])
@pytest.mark.parametrize("make", [lambda: model("plain"), array])
def test_counts_that_are_none(make, key, value):
    opt = make()
    state = with_header(opt.state_dict(), lambda header: header.update({key: value}))
    refused(opt, state, "header.*'" + key)


@pytest.mark.parametrize("value", [10**400, -1, None, "0.1", [1], {}, float("nan"), float("inf")])
def test_a_learning_rate_that_is_none(value):
    opt = model("plain")
    state = with_header(opt.state_dict(), lambda header: header["groups"][0].update(lr=value))
    refused(opt, state, r"^header\['groups'\]\[0\]\['lr'\] is ")
    opt = array()
    state = with_header(
        opt.state_dict(), lambda header: header["hyper_parameters"].update(lr=value)
    )
    refused(opt, state, r"^header\['hyper_parameters'\]\['lr'\] is ")


def test_a_number_beyond_float64_is_refused_everywhere():
    opt = model("plain")
    with pytest.raises(ValueError, match=r"^lr is beyond float64, must be a finite number >= 0"):
        opt.param_groups[0]["lr"] = 10**400
    with pytest.raises(ValueError, match=r"^lr is beyond float64"):
        AdaFactor((3,), lr=10**400)
    with pytest.raises(ValueError, match=r"^grad_scale is beyond float64"):
        opt.step({name: None for name in SHAPES}, grad_scale=10**400)


@pytest.mark.parametrize("count", [-1, 3, 2**62])
def test_counts_of_tensors_are_those_of_the_model_at_most(count):
    opt = model("plain")
    state = opt.state_dict()
    state["t"][1] = count
    refused(opt, state, rf"^state\['t'\] is {count} for params\['b'\], must be in 0 to 2")


def wrong_numbers():
    for kind in KINDS:
        for key in model(kind).state_dict():
            what = key.split("/")[0]
            if what not in ("exp_row", "exp_col", "v", "m", "master"):
                continue
            wrong = [np.nan, np.inf, -np.inf]
            if what in ("exp_row", "exp_col", "v"):
                wrong.append(-1.0)
            for value in wrong:
                yield kind, key, value


@pytest.mark.parametrize("kind, key, value", list(wrong_numbers()))
def test_numbers_that_no_step_leaves(kind, key, value):
    opt = model(kind)
    state = opt.state_dict()
    values = state[key]
    if values.dtype == np.uint16:
        values = values.view(BF16)
    values.reshape(-1)[-1] = value
    refused(opt, state, r"^state\[" + re.escape(repr(key)) + r"\](\[\d+\])* is \S+, must be finite")


def test_a_sum_that_overflows_is_refused():
    opt = array()
    state = opt.state_dict()
    state["exp_row"][:] = 1e308
    refused(opt, state, r"^state\['exp_row'\] has numbers whose sum is inf")


def test_a_run_that_propagates_loads_what_it_saved():
    opt = model("plain", nonfinite="propagate", scale_parameter=False)
    opt.step({name: np.full(shape, np.nan) for name, shape in SHAPES.items()})
    other = model("plain", nonfinite="propagate", scale_parameter=False)
    other.load_state_dict(opt.state_dict(params=True))
    assert bits(other) == bits(opt)
    refused(model("plain", scale_parameter=False), opt.state_dict(), "is nan, must be finite")


@pytest.mark.parametrize("kind", KINDS)
def test_read_only_arrays_are_refused_before_the_first_write(kind):
    state = model(kind, steps=3, seed=1).state_dict(params=True)
    for tensor in model(kind).tensors:
        for what in ("param", *tensor.state):
            opt = model(kind)
            mine = next(other for other in opt.tensors if other.name == tensor.name)
            getattr(mine, what).flags.writeable = False
            refused(opt, state, "is read-only, must be writeable")


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_may_be_the_optimizers_own_arrays(kind):
    """Two tensors of one shape, swapped, each loaded from what the other is being written to."""
    dtype, arguments = KINDS[kind]
    params = {"a": np.ones((4, 3), dtype), "b": np.full((4, 3), 2, dtype)}
    opt = Optimizer(params, **arguments)
    opt.step({"a": np.full((4, 3), 0.25), "b": np.full((4, 3), 0.5)})
    state = opt.state_dict()
    expected = {}
    for name, other in (("a", "b"), ("b", "a")):
        for what, values in opt.state[other].items():
            state[f"{what}/{name}"] = values.view(np.uint16) if values.dtype == BF16 else values
            expected[f"{what}/{name}"] = values.tobytes()
    opt.load_state_dict(state)
    after = opt.state_dict()
    assert {key: after[key].tobytes() for key in expected} == expected


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("moments", [40])
def test_a_signal_handler_that_raises_leaves_the_old_or_the_new(moments):
    """The handler runs at the first byte code that it can, at moments spread over a load."""
    shapes = {f"{i}": (60, 50) for i in range(300)}
    rng = np.random.default_rng(0)
    opt = Optimizer({n: rng.standard_normal(s) for n, s in shapes.items()})
    states = []
    for _ in range(2):
        opt.step({n: rng.standard_normal(s) for n, s in shapes.items()})
        states.append(opt.state_dict(params=True))
    expected = [{key: values.tobytes() for key, values in state.items()} for state in states]

    def interrupt(number, frame):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    seen = {"old": 0, "new": 0}
    try:
        for i in range(moments):
            opt.load_state_dict(states[0])
            signal.setitimer(signal.ITIMER_REAL, 0.0002 + 0.001 * i)
            try:
                opt.load_state_dict(states[1])
            except Interrupted:
                pass
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            after = bits(opt)
            assert after in expected
            seen["old" if after == expected[0] else "new"] += 1
    except (
        Interrupted
    ):  # between the load and the timer's end: what was loaded is whole all the same
        assert bits(opt) in expected
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen["old"] + seen["new"] > 0


def mutated(state, rng):
    """Return a state with one thing in it changed: bytes, a value, a key, a dtype or a shape."""
    state = {key: values.copy() for key, values in state.items()}
    key = str(rng.choice(sorted(state)))
    way = rng.integers(8)
    values = state[key]
    if way == 0 and values.nbytes:
        raw = bytearray(values.tobytes())
        for _ in range(rng.integers(1, 4)):
            raw[rng.integers(len(raw))] = rng.integers(256)
        state[key] = np.frombuffer(bytes(raw), values.dtype).reshape(values.shape)
    elif way == 1:
        state.pop(key)
    elif way == 2:
        state[key] = values.astype(rng.choice(["f4", "f8", "u1", "i8", "O", "S3"]))
    elif way == 3:
        state[key] = values[..., None] if rng.integers(2) else values.reshape(-1)[:-1]
    elif way == 4:
        state[rng.choice([key + "x", "header", "t"])] = rng.choice([None, 3, "x"])
    elif way == 5 and values.size and values.dtype.kind == "f":
        special = [np.nan, np.inf, -1.0, -0.0, 1e308, 5e-324]
        with np.errstate(over="ignore"):
            values.reshape(-1)[rng.integers(values.size)] = rng.choice(special)
    else:
        header = json.loads(state["header"].tobytes())
        change_json(header, rng)
        state["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    return state


def change_json(node, rng):
    """Change one thing somewhere in a tree of dicts and lists."""
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = keys[rng.integers(len(keys))]
        if isinstance(node[key], (dict, list)) and rng.integers(4):
            node = node[key]
            continue
        strange = [10**400, -1, 2**63, None, True, "x", [], {}, 1e308, float("nan"), [[[]]]]
        if rng.integers(4):
            node[key] = strange[rng.integers(len(strange))]
        elif isinstance(node, dict):
            node.pop(key)
        else:
            node.append(node[key])
        return


def fuzz(cases, seed):
    rng = np.random.default_rng(seed)
    makers = [*((lambda kind=kind: model(kind)) for kind in KINDS), array, lambda: array(2, (5,))]
    outcomes = {"loaded": 0, "refused": 0}
    for make in makers:
        opt = make()
        good = opt.state_dict(params=True) if isinstance(opt, Optimizer) else opt.state_dict()
        before = bits(opt)
        for _ in range(cases // len(makers)):
            state = mutated(good, rng)
            try:
                opt.load_state_dict(state)
            except (TypeError, ValueError) as error:
                assert str(error)
                assert bits(opt) == before
                outcomes["refused"] += 1
            else:
                outcomes["loaded"] += 1
                saved = opt.state_dict()
                means = [k for k in saved if k.split("/")[0] in ("exp_row", "exp_col", "v")]
                assert all(np.isfinite(saved[k]).all() and (saved[k] >= 0).all() for k in means)
                opt.load_state_dict(saved)  # its own checkpoint is never refused
                opt.load_state_dict(good)
    return outcomes


def test_mutated_states_load_whole_or_change_nothing():
    outcomes = fuzz(800, seed=0)
    assert outcomes["refused"] > 400 and outcomes["loaded"] > 20


@pytest.mark.soak
def test_a_hundred_thousand_mutated_states():
    outcomes = fuzz(100_000, seed=1)
    assert sum(outcomes.values()) == 100_000
