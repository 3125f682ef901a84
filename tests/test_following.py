"""Weights that somebody wrote after the optimizer was made or loaded are kept, and copies are new."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

from adafactor_native import Optimizer, SkippedStepWarning

BF16 = np.dtype(ml_dtypes.bfloat16)
STORAGE = [(BF16, "float32"), (BF16, "split"), (np.dtype(np.float16), "float32")]
SHAPES = {"w": (8, 6), "b": (6,), "s": (), "e": (0, 3)}


def weights(seed, dtype):
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(rng.standard_normal(shape), np.float32).astype(dtype)
        for name, shape in SHAPES.items()
    }


def gradients(t=0):
    return weights(100 + t, np.float32)


def optimizer(params, masters, convention="paper", **arguments):
    return Optimizer(params, convention, masters=masters, **arguments)


def stepped_from(values, masters, **arguments):
    """Return what the first step makes of these weights if nobody has written to them."""
    params = {name: array.copy() for name, array in values.items()}
    optimizer(params, masters, **arguments).step(gradients())
    return params


def write(params, values):
    for name, array in values.items():
        params[name][...] = array


def assert_same(params, expected):
    for name, array in expected.items():
        assert params[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype, masters", STORAGE)
def test_weights_loaded_after_the_optimizer_was_made_are_stepped_from(dtype, masters, rounding):
    if masters == "split" and rounding == "stochastic":
        rounding = "nearest"
    pretrained = weights(2, dtype)
    params = weights(1, dtype)
    opt = optimizer(params, masters, rounding=rounding)
    write(params, pretrained)
    opt.step(gradients())
    assert_same(params, stepped_from(pretrained, masters, rounding=rounding))


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("dtype, masters", STORAGE)
def test_weights_beside_a_loaded_state_are_kept(dtype, masters, strided):
    params = weights(1, dtype)
    first = optimizer(params, masters)
    first.step(gradients())
    state = first.state_dict()

    other = weights(3, dtype)
    if strided:
        other["w"] = np.zeros((8, 12), dtype)[:, ::-2]
        other["w"][...] = weights(3, dtype)["w"]
    opt = optimizer(other, masters)
    before = {name: array.astype(np.float32) for name, array in other.items()}
    opt.load_state_dict(state)
    opt.step({name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()})
    for name, array in other.items():
        gap = np.spacing(before[name].astype(dtype)).astype(np.float32)
        moved = np.abs(array.astype(np.float32) - before[name])
        assert (moved <= (np.abs(gap) if masters == "split" else 0)).all(), name


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_masters_that_are_still_theirs_keep_every_bit(rounding):
    params = weights(1, BF16)
    opt = optimizer(params, "float32", rounding=rounding)
    for t in range(3):
        opt.step(gradients(t))
    other_params = {name: array.copy() for name, array in params.items()}
    other = optimizer(other_params, "float32", rounding=rounding)
    other.load_state_dict(opt.state_dict())
    third = copy.deepcopy(opt)
    for t in range(3, 6):
        for one in (opt, other, third):
            one.step(gradients(t))
    assert_same(other_params, params)
    assert_same(third.params, params)
    for name, state in opt.state.items():
        assert_same(other.state[name], state)


def test_only_the_elements_that_were_written_follow():
    params = weights(1, BF16)
    opt = pickle.loads(pickle.dumps(optimizer(params, "float32")))
    opt.step(gradients())
    opt = pickle.loads(pickle.dumps(opt))
    master = opt.state["w"]["master"]
    before = master.copy()
    opt.params["w"][2, 3] = 7
    opt.step({name: None for name in SHAPES})
    assert master[2, 3] == 7
    before[2, 3] = 7
    np.testing.assert_array_equal(master, before)


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("say", [False, True])
def test_split_weights_overwritten_by_zeros_step_from_zeros(zero, say):
    params = weights(1, BF16)
    first = optimizer(params, "split", scale_parameter=False)
    for t in range(3):
        first.step(gradients(t))
    opt = optimizer(params, "split", scale_parameter=False)
    opt.load_state_dict(first.state_dict())
    for param in params.values():
        param[...] = zero
    if say:
        opt.params_changed()
        assert not any(state["low"].any() for state in opt.state.values())
    opt.step({name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()})
    for param in params.values():
        assert (np.abs(param.astype(np.float32)) < 1e-37).all()


@pytest.mark.parametrize("dtype", [BF16, np.dtype(np.float16)])
def test_copies_are_written_by_a_load_and_by_params_changed(dtype):
    saved = weights(1, np.float32)
    state = Optimizer(saved).state_dict(params=True)
    params = weights(2, np.float32)
    copies = {name: np.zeros(array.shape, dtype) for name, array in params.items()}
    opt = Optimizer(params, copies=copies)
    opt.load_state_dict(state)
    assert_same(copies, {name: array.astype(dtype) for name, array in saved.items()})
    params["w"][...] = 3
    opt.params_changed()
    assert (copies["w"] == 3).all()


def test_a_copy_that_is_read_only_refuses_the_load():
    state = Optimizer(weights(1, np.float32)).state_dict(params=True)
    params = weights(2, np.float32)
    copies = {"w": np.zeros((8, 6), np.float16)}
    opt = Optimizer(params, copies=copies)
    copies["w"].flags.writeable = False
    with pytest.raises(ValueError, match=r"copies\['w'\] is read-only, must be writeable"):
        opt.load_state_dict(state)
    assert_same(params, weights(2, np.float32))


@pytest.mark.parametrize("shape", [(3,), (70, 80), (9, 9, 3, 3)])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", [BF16, np.dtype(np.float16)])
def test_weights_that_are_overwritten_in_the_middle_of_a_run_are_never_reverted(
    dtype, rounding, shape
):
    """Every step looks at some of each param, and follows all of it where one is not its master's."""
    rng = np.random.default_rng(5)
    zeros = np.zeros(shape, np.float32)
    for steps in range(1, 18):
        param = rng.standard_normal(shape).astype(dtype)
        opt = Optimizer({"w": param}, masters="float32", rounding=rounding)
        for _ in range(steps):
            opt.step([rng.standard_normal(shape).astype(np.float32)])
        other = rng.standard_normal(shape).astype(dtype)
        param[...] = other
        opt.step([zeros])
        # An element that happens to be its master's keeps the master.
        gap = np.abs(np.spacing(other).astype(np.float32)) if rounding == "stochastic" else 0
        assert (np.abs(param.astype(np.float32) - other.astype(np.float32)) <= gap).all()
        followed = opt.state["w"]["master"] == other.astype(np.float32)
        assert followed.mean() > 0.6


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", [BF16, np.dtype(np.float16)])
def test_masters_of_any_magnitude_are_known_again(dtype, rounding):
    """No master is followed, and so loses its lower digits, that its param was rounded from."""
    rng = np.random.default_rng(6)
    exponents = rng.uniform(-30, 4, 3000)
    param = (np.sign(rng.standard_normal(3000)) * 10**exponents).astype(dtype)
    opt = Optimizer(
        {"w": param}, masters="float32", rounding=rounding, lr=1e-9, scale_parameter=False
    )
    opt.step([rng.standard_normal(3000).astype(np.float32)])
    followed = []
    opt.__dict__["_followed"] = followed.append
    for _ in range(40):
        opt.step([rng.standard_normal(3000).astype(np.float32)])
    assert not followed


@pytest.mark.parametrize("dtype", [BF16, np.dtype(np.float16)], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_masters_beyond_a_power_of_two_are_kept(sign, dtype):
    """Up to a whole unit beyond: the half below them is what they may be rounded to at random."""
    powers = np.ldexp(1.0, np.arange(-12, 12))
    masters = (sign * powers * (1 + 0.75 * float(ml_dtypes.finfo(dtype).eps))).astype(np.float32)
    param = (sign * powers).astype(dtype)
    still = {"masters": "float32", "rounding": "stochastic", "lr": 0.0}
    opt = Optimizer([param], "numpy", **still)
    opt.state["0"]["master"][...] = masters
    other = Optimizer([param.copy()], "numpy", **still)
    other.load_state_dict(opt.state_dict())
    other.step([np.ones(24, np.float32)])
    assert other.state["0"]["master"].tobytes() == masters.tobytes()


def everything(opt):
    """Return all that an exception must leave as it was."""
    states = [array for state in opt.state.values() for array in state.values()]
    arrays = [*opt.params.values(), *states]
    return [array.tobytes() for array in arrays], opt.t, opt.skipped, opt.counts.tolist()


def overwritten(dtype, masters, when, **arguments):
    """Return an optimizer beside whose masters somebody has written other weights, some of them zeros."""
    params = weights(1, dtype)
    opt = optimizer(params, masters, **arguments)
    for t in range(4):
        opt.step(gradients(t))
    if when == "loaded":
        opt.load_state_dict(opt.state_dict())
    other = weights(2, dtype)
    if masters != "split" or when == "loaded":  # in the middle a step refuses what it cannot follow
        for array in other.values():
            array.reshape(-1)[::2] = 0
    write(params, other)
    return opt


def wrong_gradients(fault):
    grads = gradients(9)
    if fault == "nan":
        grads["b"][1] = np.nan
    elif fault == "shape":
        grads["b"] = grads["b"][1:]
    elif fault == "missing":
        del grads["b"]
    elif fault == "no array":
        grads["b"] = "b"
    return grads


FAULTS = {
    "nan": (FloatingPointError, r"grads\['b'\]\[1\] is nan, must be finite; nothing was changed"),
    "shape": (ValueError, r"grads\['b'\] has shape"),
    "missing": (ValueError, "grads has no 'b'|must have 'b'|'b'"),
    "no array": (TypeError, r"grads\['b'\]"),
}


@pytest.mark.parametrize("atomic", ["all", "tensor"])
@pytest.mark.parametrize("when", ["loaded", "in the middle"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("dtype, masters", STORAGE)
def test_masters_follow_nothing_in_a_step_that_raises(dtype, masters, fault, when, atomic):
    opt = overwritten(dtype, masters, when, atomic=atomic)
    other = overwritten(dtype, masters, when, atomic=atomic)
    before = everything(opt)
    error, words = FAULTS[fault]
    grads = wrong_gradients(fault)
    if atomic == "tensor":  # those before it are stepped, and so follow
        grads = {"w": None, **{name: grad for name, grad in grads.items() if name != "w"}}
    with pytest.raises(error, match=words.split("; nothing")[0]):
        opt.step(grads)
    assert everything(opt) == before
    opt.step(gradients(9))
    other.step(gradients(9))
    assert everything(opt) == everything(other)


@pytest.mark.parametrize("when", ["loaded", "in the middle"])
@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype, masters", STORAGE)
def test_a_param_that_is_not_finite_is_named_and_its_master_stays(dtype, masters, number, when):
    opt = overwritten(dtype, masters, when)
    if masters == "split" and when == "in the middle":
        opt.state["b"]["low"][2] = 0x1234  # below the half above it an infinity looks finite
    opt.params["b"][2] = number
    before = everything(opt)
    with pytest.raises(
        FloatingPointError, match=rf"params\['b'\]\[2\] is {number}, must be finite"
    ):
        opt.step(gradients(9))
    assert everything(opt) == before


@pytest.mark.parametrize("when", ["loaded", "in the middle"])
@pytest.mark.parametrize("dtype, masters", STORAGE)
def test_masters_follow_nothing_in_a_step_that_is_left_out(dtype, masters, when):
    opt = overwritten(dtype, masters, when, nonfinite="skip")
    other = overwritten(dtype, masters, when, nonfinite="skip")
    arrays = everything(opt)[0]
    with pytest.warns(SkippedStepWarning):
        assert opt.step(wrong_gradients("nan")).skipped
    assert everything(opt)[0] == arrays
    opt.step(gradients(9))
    other.step(gradients(9))
    assert everything(opt)[0] == everything(other)[0]


@pytest.mark.parametrize("dtype, masters", STORAGE)
def test_what_was_stepped_before_a_fault_has_followed(dtype, masters):
    """With atomic='tensor' tensors before the one at fault are stepped, from the weights written."""
    opt = overwritten(dtype, masters, "loaded", atomic="tensor")
    other = overwritten(dtype, masters, "loaded", atomic="tensor")
    beside = {name: [x.tobytes() for x in state.values()] for name, state in opt.state.items()}
    with pytest.raises(FloatingPointError, match="those before it were"):
        opt.step(wrong_gradients("nan"))
    grads = {**dict.fromkeys(SHAPES), "w": gradients(9)["w"]}
    other.step(grads)
    assert opt.counts.tolist() == other.counts.tolist() == [5, 4, 4, 4]
    for name in SHAPES:
        own = [x.tobytes() for x in opt.state[name].values()]
        if name == "w":
            assert own == [x.tobytes() for x in other.state[name].values()]
        else:
            assert own == beside[name]


@pytest.mark.parametrize("when", ["loaded", "in the middle"])
@pytest.mark.parametrize("fault", ["nan", "shape", "no array"])
@pytest.mark.parametrize("dtype, masters", STORAGE)
def test_masters_follow_nothing_in_a_tensors_step_that_raises(dtype, masters, fault, when):
    opt = overwritten(dtype, masters, when)
    before = everything(opt)
    with pytest.raises(FAULTS[fault][0], match=r"grads\['b'\]"):
        opt.step_tensor("b", wrong_gradients(fault)["b"])
    assert everything(opt) == before
    other = overwritten(dtype, masters, when)
    for name, grad in gradients(9).items():
        opt.step_tensor(name, grad)
    opt.step()
    other.step(gradients(9))
    assert everything(opt) == everything(other)


@pytest.mark.parametrize("fault", ["shape", "no array"])
@pytest.mark.parametrize("dtype, masters", STORAGE)
def test_masters_follow_nothing_where_measure_raises(dtype, masters, fault):
    opt = overwritten(dtype, masters, "loaded")
    other = overwritten(dtype, masters, "loaded")
    before = everything(opt)
    with pytest.raises(FAULTS[fault][0], match=r"grads\['b'\]"):
        opt.measure("b", wrong_gradients(fault)["b"])
    assert everything(opt) == before
    for name, grad in gradients(9).items():
        opt.measure(name, grad)
    opt.step()
    other.step(gradients(9))
    assert everything(opt) == everything(other)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("dtype, masters", STORAGE)
def test_masters_are_given_back_where_no_report_can_be_made(dtype, masters, error, monkeypatch):
    opt = overwritten(dtype, masters, "loaded")
    before = everything(opt)

    def make_report(*given, **named):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("adafactor_native.optimizer.StepReport", make_report)
        with pytest.raises(error):
            opt.step(gradients(9))
    assert everything(opt) == before


def test_what_follows_may_lie_in_any_order():
    """Masters that are strided get their own elements back."""
    param = np.zeros((6, 5, 4), BF16).transpose(2, 0, 1)[:, ::-2]
    param[...] = np.arange(60).reshape(param.shape)
    opt = Optimizer({"w": param}, masters="float32")
    opt.step([np.full(param.shape, 0.25, np.float32)])
    before = everything(opt)
    values = param.copy()
    param[...] = -values
    bad = np.full(param.shape, 0.25, np.float32)
    bad[3, 2, 4] = np.inf
    with pytest.raises(FloatingPointError, match=r"\[3, 2, 4\] is inf"):
        opt.step([bad])
    param[...] = values
    assert everything(opt) == before


def test_zeros_with_lower_halves_of_other_numbers_are_refused_by_a_sentence():
    opt = overwritten(BF16, "split", "in the middle", scale_parameter=False)
    low = opt.state["w"]["low"]
    low[1, 3] = 0xF000
    opt.params["w"][1, 3] = 0
    before = everything(opt)
    with pytest.raises(
        FloatingPointError,
        match=r"params\['w'\]\[1, 3\] is 0.0, which somebody wrote beside the lower half of another "
        r"number, must be said: call opt.params_changed\(\); nothing was changed",
    ):
        opt.step(gradients(9))
    assert everything(opt) == before
    opt.params_changed()
    opt.step(gradients(9))
