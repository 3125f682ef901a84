"""AdaFactor's state as a flat dict of arrays: the same bits after it, and what is refused."""

import io
import json
import re

import numpy as np
import pytest
from safetensors import numpy as safetensors

import adafactor_native as an
from arrays import normal

SHAPES = [(4, 5), (7,), (), (2, 3, 4), (0, 3)]


def started(shape, steps=3, **options):
    opt, param = an.AdaFactor(shape, **options), normal(shape, np.float32)
    for t in range(steps):
        opt.update(param, normal(shape, np.float32, seed=t))
    return opt, param


def through_numpy(state):
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    return dict(np.load(file))


def through_safetensors(state):
    return safetensors.load(safetensors.save(state))


def with_header(**changes):
    def change(state):
        header = json.loads(state["header"].tobytes())
        for path, value in changes.items():
            *parents, key = path.split("__")
            place = header
            for parent in parents:
                place = place[parent]
            if value is KeyError:
                del place[key]
            else:
                place[key] = value
        state["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)

    return change


@pytest.mark.parametrize("through", [dict, through_numpy, through_safetensors])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_same_bits_after_it(shape, through):
    opt, param = started(shape, lr=0.1, clip_threshold=None, rounding="stochastic", seed=5)
    twin, twin_param = an.AdaFactor(shape), param.copy()
    twin.load_state_dict(through(opt.state_dict()))
    assert (twin.t, twin.skipped, twin.lr, twin.clip_threshold) == (3, 0, 0.1, None)
    assert (twin.rounding, twin.seed) == ("stochastic", 5)
    for t in (3, 4):
        grad = normal(shape, np.float32, seed=t)
        opt.update(param, grad)
        twin.update(twin_param, grad)
    assert param.tobytes() == twin_param.tobytes()
    assert all((opt.state_dict()[key] == value).all() for key, value in twin.state_dict().items())


def test_it_is_a_copy():
    opt, param = started((4, 5))
    before = opt.state_dict()
    kept = {key: array.copy() for key, array in before.items()}
    opt.update(param, normal((4, 5), np.float32, seed=9))
    assert all((before[key] == array).all() for key, array in kept.items())


def test_what_it_does_not_take_over():
    opt, _ = started((4, 5))
    twin = an.AdaFactor((4, 5), nonfinite="skip", num_threads=3, carry_param_rms=True)
    twin.load_state_dict(opt.state_dict())
    assert (twin.nonfinite, twin.num_threads, twin.carry_param_rms) == ("skip", 3, True)


REFUSED = [
    (lambda s: s.pop("header"), ValueError, "state has no 'header', must be that of a state_dict"),
    (lambda s: s.pop("exp_row"), ValueError, "state has no 'exp_row', must have this optimizer's"),
    (lambda s: s.update(v=s["exp_row"]), ValueError, "state has 'v', must have this optimizer's"),
    (
        lambda s: s.update(exp_col=s["exp_col"].astype(np.float32)),
        TypeError,
        "state['exp_col'] has dtype float32, must be float64",
    ),
    (
        lambda s: s.update(exp_col=s["exp_col"][1:]),
        ValueError,
        "state['exp_col'] has shape (4,), must be (5,)",
    ),
    (with_header(format="adafactor_native.Optimizer"), ValueError, "state['header'] is not ours"),
    (with_header(format_version=9), ValueError, "state['header'] has format version 9"),
    (with_header(t=-1), ValueError, "header['t'] is -1, must be an int >= 0"),
    (with_header(t=KeyError), ValueError, "state['header'] has no 't' that makes sense"),
    (with_header(shape=[5, 4]), ValueError, "shape was (5, 4) when the state was saved, must be"),
    (
        with_header(hyper_parameters__lr=-1),
        ValueError,
        "header['hyper_parameters']['lr'] is -1.0, must be a finite number >= 0",
    ),
    (
        with_header(hyper_parameters__lr=KeyError),
        ValueError,
        "header['hyper_parameters'] must have lr, beta2",
    ),
]


@pytest.mark.parametrize("change, error, text", REFUSED)
def test_a_bad_state_changes_nothing(change, error, text):
    opt, _ = started((4, 5), steps=1, lr=0.25)
    state = started((4, 5), steps=2)[0].state_dict()
    change(state)
    before = opt.state_dict()
    with pytest.raises(error, match="^" + re.escape(text)):
        opt.load_state_dict(state)
    after = opt.state_dict()
    assert all((before[key] == array).all() for key, array in after.items())


def test_a_state_that_cannot_be_written_to_stays_as_it_is():
    opt, _ = started((4, 5), steps=1, lr=0.25)
    state = started((4, 5), steps=2)[0].state_dict()
    opt.exp_col.flags.writeable = False
    before = opt.state_dict()
    with pytest.raises(ValueError, match=r"^exp_col of this optimizer is read-only, must be writ"):
        opt.load_state_dict(state)
    assert all((before[key] == array).all() for key, array in opt.state_dict().items())


def test_no_mapping():
    with pytest.raises(TypeError, match=r"^state is a list, must be a mapping from str to arrays"):
        an.AdaFactor((3,)).load_state_dict([])
