"""Checkpoints: they come back bit for bit, and nothing that is not one gets in."""

import io
import json
import re
import signal

import numpy as np
import pytest
import safetensors.numpy

import adafactor_native as an
from adafactor_native import Optimizer
from arrays import normal
from models import MODELS
from optimizers import digest_of_model
from oracle import halves_reference as halves
from oracle.halves_reference import bfloat16, float16
from two_groups import RUNS, SHAPES, gradients, new_params, optimizer


def started(run, steps=3):
    opt = optimizer(run)
    for t in range(steps):
        opt.step(gradients(t))
    opt.nonfinite = "skip"
    opt.step({**gradients(0), "b": np.full(5, np.inf)})
    opt.param_groups[1]["eps_scale"] = 0.01
    return opt


def through_savez(state, path):
    np.savez(path / "state.npz", **state)
    return dict(np.load(path / "state.npz"))


def through_safetensors(state, path):
    safetensors.numpy.save_file(state, path / "state.safetensors")
    return safetensors.numpy.load_file(path / "state.safetensors")


WAYS = {
    "dict": lambda state, path: state,
    "savez": through_savez,
    "npz file": lambda state, path: through_savez(state, path) and np.load(path / "state.npz"),
    "safetensors": through_safetensors,
    "other order": lambda state, path: dict(reversed(state.items())),
    "views": lambda state, path: {key: strided(array) for key, array in state.items()},
}


def strided(array):
    if array.ndim == 0 or array.dtype == np.uint8:
        return array
    wider = np.zeros((*array.shape, 2), array.dtype)
    wider[..., 1] = array
    return wider[..., 1]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("run", RUNS)
def test_a_resumed_run_continues_with_the_same_bits(run, way, tmp_path):
    opt = started(run)
    state = opt.state_dict()
    twin = optimizer(run, {name: x.copy(order="K") for name, x in opt.params.items()})
    twin.load_state_dict(WAYS[way](state, tmp_path))

    assert digest_of_model(twin) == digest_of_model(opt)
    assert (twin.t, twin.skipped, twin.counts.tolist()) == (3, 1, [3, 3, 2, 3, 3, 3])
    assert twin.max_grad_norm == opt.max_grad_norm and twin.nonfinite == "raise"
    for one, other in zip(opt.param_groups, twin.param_groups):
        assert {k: v for k, v in one.items() if not callable(v) and k != "params"} == {
            k: v for k, v in other.items() if not callable(v) and k != "params"
        }
    for t in range(3, 6):
        opt.step(gradients(t))
        twin.step(gradients(t))
        assert digest_of_model(twin) == digest_of_model(opt)


@pytest.mark.parametrize("run", RUNS)
def test_a_state_with_params_is_the_whole_checkpoint(run, tmp_path):
    opt = started(run)
    twin = optimizer(run)
    params = list(twin.params.values())
    twin.load_state_dict(through_safetensors(opt.state_dict(params=True), tmp_path))
    assert all(x is y for x, y in zip(twin.params.values(), params))
    assert digest_of_model(twin) == digest_of_model(opt)


def test_a_state_is_a_copy_and_loading_copies():
    opt = started("huggingface")
    state = opt.state_dict(params=True)
    before = {key: array.tobytes() for key, array in state.items()}
    opt.step(gradients(4))
    assert {key: array.tobytes() for key, array in state.items()} == before
    twin = optimizer("huggingface")
    live = twin.state["w"]["exp_row"]
    twin.load_state_dict(state)
    assert twin.state["w"]["exp_row"] is live
    twin.step(gradients(4))
    assert {key: array.tobytes() for key, array in state.items()} == before


def test_keys_and_arrays():
    opt = started("huggingface")
    state = opt.state_dict()
    assert set(state) == {
        *("header", "t"),
        *(f"{kind}/{name}" for name in "wkfz" for kind in ("exp_row", "exp_col")),
        *("v/b", "v/s"),
        *(f"m/{name}" for name in SHAPES),
    }
    assert all(x.flags.c_contiguous and x.flags.owndata for x in state.values())
    assert (state["header"].dtype, state["t"].dtype) == (np.uint8, np.int64)
    header = json.loads(state["header"].tobytes())
    assert header["package_version"] == an.__version__
    assert header["convention"] == "huggingface"
    assert header["tensors"][2] == {
        "name": "k",
        "shape": [6, 2, 5],
        "dtype": "float32",
        "group": 0,
        "factored_axes": [1, 2],
        "state": ["exp_row", "exp_col", "m"],
        "state_dtype": "float64",
        "decays": True,
    }
    assert (header["t"], header["skipped"], header["groups"][1]["clip_threshold"]) == (3, 1, 0.5)


def test_tensors_are_found_by_name():
    params = new_params()
    opt = Optimizer(params, convention="numpy", lr=0.5)
    opt.step(gradients(2))
    twin = Optimizer(
        dict(reversed([(name, x.copy(order="K")) for name, x in params.items()])),
        convention="numpy",
    )
    twin.load_state_dict(opt.state_dict())
    assert twin.counts.tolist() == opt.counts[::-1].tolist()
    for t in (3, 4):
        opt.step(gradients(t))
        twin.step(gradients(t))
    assert all(twin.params[name].tobytes() == x.tobytes() for name, x in params.items())


def with_header(**changes):
    def change(state):
        header = json.loads(state["header"].tobytes())
        for path, value in changes.items():
            *way, last = (int(k) if k.isdecimal() else k for k in path.split("__"))
            part = header
            for key in way:
                part = part[key]
            if value is KeyError:
                del part[last]
            else:
                part[last] = value
        state["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)

    return change


def renamed(old, new):
    def change(state):
        state[new] = state.pop(old)

    return change


def replaced(key, function):
    def change(state):
        state[key] = function(state[key])

    return change


# What is done to a good state; the error; the beginning of its text
BAD = [
    (lambda s: s.clear(), ValueError, "state has no 'header', must be that of a state_dict of"),
    (lambda s: s.pop("header"), ValueError, "state has no 'header', must be that of a state_dict"),
    (lambda s: s.pop("t"), ValueError, "state has no 't', must have this optimizer's and no other"),
    (lambda s: s.pop("v/b"), ValueError, "state has no 'v/b', must have this optimizer's and no"),
    (lambda s: s.pop("m/w"), ValueError, "state has no 'm/w', must have this optimizer's and no"),
    (lambda s: s.update(x=s["t"]), ValueError, "state has 'x', must have this optimizer's and no"),
    (renamed("v/b", "v/c"), ValueError, "state has no 'v/b' and has 'v/c', must have this optim"),
    (renamed("exp_row/w", "v/w"), ValueError, "state has no 'exp_row/w' and has 'v/w', must have"),
    (replaced("v/b", lambda x: x.tolist()), TypeError, "state['v/b'] is a list, must be a numpy."),
    (replaced("v/b", lambda x: x[:-1]), ValueError, "state['v/b'] has shape (4,), must be (5,)"),
    (replaced("exp_row/k", lambda x: x.T), ValueError, "state['exp_row/k'] has shape (2, 6), must"),
    (
        replaced("v/b", lambda x: x.astype(np.float32)),
        TypeError,
        "state['v/b'] has dtype float32, must be float64",
    ),
    (replaced("v/b", lambda x: x.astype(">f8")), TypeError, "state['v/b'] has dtype >f8, must be"),
    (
        replaced("m/w", lambda x: x.astype(np.float64)),
        TypeError,
        "state['m/w'] has dtype float64, must be float32",
    ),
    (replaced("t", lambda x: x.astype(float)), TypeError, "state['t'] has dtype float64, must be"),
    (replaced("t", lambda x: x[1:]), ValueError, "state['t'] has shape (5,), must be (6,)"),
    (replaced("t", lambda x: -x), ValueError, "state['t'] is -3 for params['w'], must be in 0 to"),
    (replaced("t", lambda x: x + 9), ValueError, "state['t'] is 12 for params['w'], must be in 0"),
    (replaced("header", lambda x: x[:-9]), ValueError, "state['header'] is no JSON, cut or overwr"),
    (replaced("header", lambda x: x[:0]), ValueError, "state['header'] is no JSON, cut or overwri"),
    (replaced("header", lambda x: x | 128), ValueError, "state['header'] is no JSON, cut or overw"),
    (replaced("header", lambda x: x.view(np.int8)), TypeError, "state['header'] must be a numpy.n"),
    (replaced("header", bytes), TypeError, "state['header'] must be a numpy.ndarray of uint8 with"),
    (with_header(format="other"), ValueError, "state['header'] is not ours, must be that of a sta"),
    (with_header(format=KeyError), ValueError, "state['header'] is not ours, must be that of a st"),
    (
        with_header(format_version=3, package_version="9.9"),
        ValueError,
        "state['header'] has format version 3 (adafactor_native 9.9), must have 1 or 2 (adafac",
    ),
    (with_header(groups=KeyError), ValueError, "state['header'] has no 'groups' that makes sense"),
    (with_header(tensors=3), ValueError, "state['header'] has no 'tensors' that makes sense, must"),
    (with_header(t=KeyError), ValueError, "state['header'] has no 't' that makes sense, must be"),
    (with_header(t=None), TypeError, "header['t'] is a NoneType, must be an int >= 0"),
    (with_header(t=-1), ValueError, "header['t'] is -1, must be an int >= 0"),
    (with_header(skipped=float("nan")), TypeError, "header['skipped'] is a float, must be an int"),
    (with_header(max_grad_norm=-1), ValueError, "header['max_grad_norm'] is -1.0, must be a numb"),
    (
        with_header(convention="torch"),
        ValueError,
        "convention was 'torch' when the state was saved, must be 'huggingface' as here",
    ),
    (
        with_header(tensors__0__name="u"),
        ValueError,
        "state has no params['w'] and has params['u'], must have this optimizer's and no others",
    ),
    (with_header(tensors__0=KeyError), ValueError, "state has no params['w'], must have this opti"),
    (
        with_header(tensors__0__name="b"),
        ValueError,
        "header['tensors'][1] must have a name of its own, has 'b'",
    ),
    (with_header(tensors__0=None), ValueError, "header['tensors'][0] must have a name of its own"),
    (
        with_header(tensors__0__shape=[5, 4]),
        ValueError,
        "shape of params['w'] was [5, 4] when the state was saved, must be [4, 5] as here",
    ),
    (
        with_header(tensors__0__dtype="float64"),
        ValueError,
        "dtype of params['w'] was 'float64' when the state was saved, must be 'float32' as here",
    ),
    (
        with_header(tensors__0__group=1),
        ValueError,
        "group of params['w'] was 1 when the state was saved, must be 0 as here",
    ),
    (
        with_header(tensors__0__factored_axes=[1, 0]),
        ValueError,
        "factored_axes of params['w'] was [1, 0] when the state was saved, must be [0, 1] as here",
    ),
    (
        with_header(tensors__0__decays=False),
        ValueError,
        "decays of params['w'] was False when the state was saved, must be True as here",
    ),
    (
        with_header(tensors__0__state=["v"]),
        ValueError,
        "state of params['w'] was ['v'] when the state was saved, must be ['exp_row', 'exp_col',",
    ),
    (
        with_header(groups=[]),
        ValueError,
        "the number of groups was 0 when the state was saved, must be 2 as here",
    ),
    (with_header(groups__0={}), ValueError, "header['groups'][0] must have the switches lr, sched"),
    (with_header(groups__1__eps=-1), ValueError, "header['groups'][1]['eps'] is -1.0, must be a"),
    (
        with_header(groups__0__beta1=None),
        ValueError,
        "header['groups'][0]['beta1'] is None, must be a number in [0, 1)",
    ),
    (
        with_header(groups__0__lr={"callable": True}),
        ValueError,
        "lr is 0.01, must be a callable, as it was when the state was saved",
    ),
]


@pytest.mark.parametrize("change, error, text", BAD)
def test_a_bad_state_is_refused(change, error, text):
    opt, state = started("huggingface", steps=4), started("huggingface").state_dict()
    change(state)
    before, groups = digest_of_model(opt), [dict(group) for group in opt.param_groups]
    with pytest.raises(error, match="^" + re.escape(text)) as caught:
        opt.load_state_dict(state)
    assert caught.type is error
    assert digest_of_model(opt) == before
    assert [dict(group) for group in opt.param_groups] == groups


def test_what_is_no_state():
    for state, what in ([], "list"), (None, "NoneType"), (b"header", "bytes"):
        with pytest.raises(TypeError, match=f"^state is a {what}, must be a mapping from str to"):
            started("numpy").load_state_dict(state)
    with pytest.raises(TypeError, match="params is a str, must be a bool"):
        started("numpy").state_dict("all")


def test_other_optimizers_states_are_refused():
    """Of another convention, model, group, dtype, or choice of a schedule."""
    state = started("numpy").state_dict()
    others = {
        "convention was": Optimizer(new_params(), "paper"),
        "the number of groups was": Optimizer(new_params(), convention="numpy"),
        "state has params": Optimizer(
            [{"params": {"w": np.ones((4, 5))}}, {"params": []}], convention="numpy"
        ),
        "dtype of params": optimizer("numpy", new_params(np.float64)),
    }
    for text, opt in others.items():
        with pytest.raises(ValueError, match=f"^{text}"):
            opt.load_state_dict(state)
    opt = optimizer("numpy")
    opt.param_groups[0]["lr"] = lambda t: 0.5
    with pytest.raises(ValueError, match="lr is a callable, must be as when the state was saved"):
        opt.load_state_dict(state)
    opt.param_groups[0]["lr"] = 0.1
    opt.load_state_dict(state)
    assert opt.param_groups[0]["lr"] == 0.5


def test_a_file_that_was_cut_is_refused(tmp_path):
    opt = started("numpy")
    file = io.BytesIO()
    np.savez(file, **opt.state_dict())
    whole = file.getvalue()
    before = digest_of_model(opt)
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        with pytest.raises(Exception):  # noqa: B017 - NumPy's and zipfile's own, of many types
            opt.load_state_dict(dict(np.load(io.BytesIO(whole[:length]))))
    assert digest_of_model(opt) == before


# Steps a model, saving after each step; killed in the middle of its third save.
KILLED = """
    import os, signal
    import numpy as np
    import two_groups

    class DyingFile:
        def __init__(self, file, n_bytes):
            self.file, self.left = file, n_bytes
        def write(self, data):
            self.left -= len(data)
            if self.left < 0:
                self.file.write(data[: len(data) // 2])
                self.file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return self.file.write(data)
        def __getattr__(self, name):
            return getattr(self.file, name)

    opt = two_groups.optimizer("optax")
    for step in range(10):
        opt.step(two_groups.gradients(step))
        with open("checkpoint.tmp", "wb") as file:
            np.savez(DyingFile(file, 3000 if step == 2 else 10**9), **opt.state_dict(params=True))
        os.replace("checkpoint.tmp", "checkpoint.npz")
"""


def test_killed_in_the_middle_of_a_save(python, tmp_path):
    python(KILLED, returncode=-signal.SIGKILL)
    assert (tmp_path / "checkpoint.tmp").stat().st_size > 0

    never_stopped, resumed = optimizer("optax"), optimizer("optax")
    resumed.load_state_dict(dict(np.load(tmp_path / "checkpoint.npz")))
    assert resumed.t == 2
    for t in range(6):
        never_stopped.step(gradients(t))
    for t in range(2, 6):
        resumed.step(gradients(t))
    assert digest_of_model(resumed) == digest_of_model(never_stopped)


def test_resumed_in_another_process(python, tmp_path):
    opt = started("optax")
    through_savez(opt.state_dict(params=True), tmp_path)
    output = python("""
        import numpy as np
        import two_groups
        from optimizers import digest_of_model
        opt = two_groups.optimizer("optax")
        opt.load_state_dict(dict(np.load("state.npz")))
        opt.step(two_groups.gradients(3))
        print(digest_of_model(opt))
    """)
    opt.step(gradients(3))
    assert output.strip() == digest_of_model(opt)


@pytest.mark.parametrize("convention", ["numpy", "torch"])
@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_a_nan_in_the_last_of_148_tensors_changes_no_bit(nonfinite, convention):
    shapes = {
        name: tuple(max(1, n // 16) for n in shape)
        for name, shape in MODELS["GPT-2 small"]().items()
    }
    assert len(shapes) == 148
    params = {
        name: normal(shape, np.float32, seed=i) for i, (name, shape) in enumerate(shapes.items())
    }
    opt = Optimizer(params, convention, nonfinite=nonfinite)
    grads = {name: x[::-1].copy() for name, x in params.items()}
    opt.step(grads)
    before = digest_of_model(opt)
    last = opt.names[-1]
    grads[last][-1] = np.nan
    if nonfinite == "raise":
        at = grads[last].size - 1
        with pytest.raises(FloatingPointError, match=re.escape(f"grads[{last!r}][{at}] is nan")):
            opt.step(grads)
    else:
        assert opt.step(grads).skipped and opt.skipped == 1
        opt._tensors.set_counts(opt.t, 0, opt.counts.tolist())
    assert digest_of_model(opt) == before


# Half precision

HALF_SHAPES = {
    "w": (40, 30),
    "b": (30,),
    "k": (6, 8, 3, 3),
    "f": (20, 30),
    "s": (7, 9),
    "z": (0, 3),
}

HALF_OPTIONS = {
    "stochastic": {"rounding": "stochastic", "seed": 11},
    "masters": {"masters": "float32", "lr": lambda t: 0.1 / t},
    "split": {"masters": "split", "beta1": 0.9, "momentum_dtype": "bfloat16"},
    "last two": {"factored_axes": "last_two", "rounding": "stochastic", "beta1": 0.5},
}


def half_params(dtype):
    params = {
        name: normal(shape, dtype, seed=i) for i, (name, shape) in enumerate(HALF_SHAPES.items())
    }
    params["f"] = np.asfortranarray(params["f"])
    params["z"] = np.asfortranarray(params["z"])
    params["s"] = np.zeros((14, 27), dtype)[::2, ::-3]  # neither order
    params["s"][...] = normal(HALF_SHAPES["s"], dtype, seed=9)
    return params


def half_step(opt, t):
    opt.step({name: normal(x.shape, x.dtype, seed=10 * t) for name, x in opt.params.items()})


@pytest.mark.parametrize("way", [through_savez, through_safetensors])
@pytest.mark.parametrize("dtype", halves.HALVES, ids=str)
@pytest.mark.parametrize("options", HALF_OPTIONS)
def test_a_resumed_run_of_half_precision_continues_with_the_same_bits(
    options, dtype, way, tmp_path
):
    if options == "split" and dtype == float16:
        options = "masters"
    opt = Optimizer(half_params(dtype), convention="numpy", **HALF_OPTIONS[options])
    for t in range(3):
        half_step(opt, t)
    twin = Optimizer(half_params(dtype), convention="numpy", **{**HALF_OPTIONS[options], "seed": 5})
    twin.load_state_dict(way(opt.state_dict(params=True), tmp_path))
    assert twin.seed == opt.seed
    assert digest_of_model(twin) == digest_of_model(opt)
    for t in range(3, 5):
        half_step(opt, t)
        half_step(twin, t)
        assert digest_of_model(twin) == digest_of_model(opt)


def test_states_of_other_dtypes_are_refused():
    opt = Optimizer(
        {"w": np.ones((4, 3), bfloat16)}, convention="numpy", beta1=0.9, momentum_dtype="bfloat16"
    )
    state = opt.state_dict(params=True)
    assert state["m/w"].dtype == state["param/w"].dtype == np.uint16
    others = [
        ({"beta1": 0.9}, bfloat16, r"state\['m/w'\] has dtype uint16, must be float32"),
        ({"beta1": 0.9, "momentum_dtype": "bfloat16"}, float16, "dtype of params"),
        (
            {"beta1": 0.9, "momentum_dtype": "bfloat16", "masters": "float32"},
            bfloat16,
            "state of params",
        ),
    ]
    for arguments, dtype, text in others:
        other = Optimizer({"w": np.ones((4, 3), dtype)}, convention="numpy", **arguments)
        with pytest.raises((TypeError, ValueError), match=text):
            other.load_state_dict(state)


def test_a_state_with_params_is_not_loaded_into_read_only_ones():
    opt = Optimizer({"w": np.ones((4, 3)), "b": np.ones(3)}, convention="numpy", lr=0.1)
    half_step(opt, 0)
    state = opt.state_dict(params=True)
    half_step(opt, 1)
    before = digest_of_model(opt)
    opt.params["b"].flags.writeable = False
    with pytest.raises(ValueError, match=r"params\['b'\] is read-only, must be writeable"):
        opt.load_state_dict(state)
    assert digest_of_model(opt) == before
