"""Running means in float32: a step is float64's from what is kept, which is rounded once.

Whatever a step may be: each is compared with the reference, which computes in float64 and rounds its
means when they have been used. What the roundings of many steps add up to is bounded.
"""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

import adafactor_native as an
from adafactor_native import convert
from arrays import DTYPE_PAIRS, normal
from buffers import LAYOUTS, Buffer
from compare import assert_run_matches
from optimizers import digest, digest_of_model
from oracle.switches_reference import Run
from peers import tensors
from test_conventions import IN_FLOAT32, SINGLE, assert_same_steps
from two_groups import RUNS, SHAPES, gradients, new_params, optimizer

HALF_UNIT = 2.0**-24  # of float32, relative
MEANS = ("exp_row", "exp_col", "v")


def means_of(opt):
    return [x for state in opt.state.values() for kind, x in state.items() if kind in MEANS]


def in_float32(run, params=None):
    """The optimizer of two groups, with float32 in both."""
    like = optimizer(run)
    params = new_params() if params is None else params
    groups = [
        {"params": {name: params[name] for name in group["names"]}} for group in like.param_groups
    ]
    groups[1]["clip_threshold"] = 0.5
    return an.Optimizer(groups, **RUNS[run], state_dtype="float32")


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(), (37,), (1030,), (2, 3, 4), (5, 19), (135, 70), (6, 1100)])
def test_each_step_is_float64s(shape, layout, dtypes, isa, kind):
    """Of any dtypes and layout: means within half a unit of float32, param within float64's budget."""
    buffer = Buffer(normal(shape, dtypes[0]), layout)
    run = kind(buffer.array, state_dtype="float32")
    for t in range(3):
        assert_run_matches(run, normal(shape, dtypes[1], seed=t + 1))
    buffer.assert_guards_intact()
    assert all(x.dtype == np.float32 for x in run.state.values())


@pytest.mark.parametrize("eps", [1e-30, 1e-6, 1e-3])
@pytest.mark.parametrize("size", [1e-15, 1.0, 1e15])
@pytest.mark.parametrize("shape", [(70, 33), (40,)], ids=str)
def test_every_size_of_eps_and_gradients(shape, size, eps, kind):
    run = kind(normal(shape, np.float32), eps=eps, state_dtype="float32")
    for t in range(3):
        assert_run_matches(run, normal(shape, np.float32, seed=t + 1, scale=size))


@pytest.mark.parametrize("switches", SINGLE.values(), ids=SINGLE)
def test_every_switch(switches):
    opt = an.Optimizer(tensors.params(), convention="numpy", state_dtype="float32", **switches)
    run = Run(opt.params, state_dtype=np.float32, **switches)
    assert_same_steps(opt, run, tensors.gradients()[:6], IN_FLOAT32)
    assert {x.dtype for x in means_of(opt)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("run", RUNS)
def test_conventions_beside_float64(run):
    """After a few steps params differ by no more than the roundings of the means, and their own."""
    floats, doubles = in_float32(run), optimizer(run)
    for t in range(1, 6):
        floats.step(gradients(t))
        doubles.step(gradients(t))
    for name, param in floats.params.items():
        np.testing.assert_allclose(param, doubles.params[name], 4e-6, 4e-6)
    for mine, theirs in zip(means_of(floats), means_of(doubles)):
        np.testing.assert_allclose(mine, theirs, 5 * HALF_UNIT + 1e-6)


@pytest.mark.parametrize("beta2", [0.9, 0.999, 0.99999])
def test_many_steps_keep_to_the_bound(beta2):
    """Relative errors of v are at most t * 2**-24, and about 2**-24 / (1 - beta2)."""
    n = 64
    floats, doubles = (
        an.AdaFactor((n,), beta2=beta2, state_dtype=dtype) for dtype in ("float32", "float64")
    )
    params = [np.ones(n), np.ones(n)]
    rng = np.random.default_rng(0)
    for t in range(1, 1500):
        grad = rng.standard_normal(n) * (t < 1000)  # at the end v fades
        floats.update(params[0], grad)
        doubles.update(params[1], grad)
        error = np.max(np.abs(floats.v / doubles.v - 1))
        assert error <= 1.001 * t * HALF_UNIT
        if t < 1000:
            assert error <= 2 * HALF_UNIT / (1 - beta2)
    assert error > 0


def test_what_is_less_than_half_a_unit_is_lost():
    """beta2 = 1 - 2**-26: v stays where it is, though squares are twice as large; float64's moves."""
    beta2 = 1 - 2.0**-26
    for dtype in ("float32", "float64"):
        opt = an.AdaFactor((3,), beta2=beta2, state_dtype=dtype)
        opt.v[...] = 1
        opt.update(np.ones(3), np.full(3, np.sqrt(2.0)))
        assert (opt.v == 1).all() == (dtype == "float32")
    # and with 1 - 2**-23 it moves
    opt = an.AdaFactor((3,), beta2=1 - 2.0**-23, state_dtype="float32")
    opt.v[...] = 1
    opt.update(np.ones(3), np.full(3, np.sqrt(2.0)))
    assert (opt.v == 1 + 2.0**-23).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [(70_000,), (300, 400), (9, 40, 3, 3)], ids=str)
def test_threads_and_instruction_sets_have_the_same_bits(shape, threads, isa):
    def end(**options):
        opt = an.Optimizer(
            {"w": normal(shape, np.float32)}, "torch", state_dtype="float32", **options
        )
        for t in range(3):
            opt.step({"w": normal(shape, np.float32, seed=t + 1)})
        return digest_of_model(opt)

    an._core.set_isa(isa)
    here = end(num_threads=threads)
    an._core.set_isa("baseline")
    assert here == end(num_threads=1)


# A step that float32 cannot keep

SIZES = {"gradient": (1e25, {}), "eps": (1.0, {"eps": 1e39})}


@pytest.mark.parametrize("cause", SIZES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (40,), (1100,), (7, 9), (70, 1100), (9, 4, 3, 3)], ids=str)
def test_means_beyond_float32_are_refused(shape, dtype, cause):
    size, switches = SIZES[cause]
    grad = normal(shape, dtype, scale=size)
    doubles = an.Optimizer({"w": normal(shape, dtype)}, "keras", weight_decay=0.1)
    doubles.param_groups[0].update({"eps": switches.get("eps", 1e-30)})
    doubles.step({"w": grad})  # float64 has room for it
    opt = an.Optimizer({"w": normal(shape, dtype)}, "keras", weight_decay=0.1, state_dtype="f4")
    opt.step({"w": normal(shape, dtype, seed=1)})
    opt.param_groups[0].update({"eps": switches.get("eps", 1e-30)})
    before = digest_of_model(opt)
    kind = "v" if opt.tensors[0].axes is None else "exp_row or exp_col"
    with pytest.raises(FloatingPointError) as error:
        opt.step({"w": grad})
    assert str(error.value).startswith(f"{kind} of 'w' would have a mean of squares above 3.4e38")
    assert "state_dtype='float64'" in str(error.value)
    assert digest_of_model(opt) == before
    opt.nonfinite = "skip"
    with pytest.warns(an.SkippedStepWarning):
        assert opt.step({"w": grad}).skipped
    opt.nonfinite = "propagate"
    assert opt.step({"w": grad})["w"]["stepped"]
    assert any(np.isinf(x).any() for x in opt.state["w"].values())


def test_the_largest_mean_that_float32_holds():
    """FLT_MAX is kept; what rounds to more is refused."""
    largest = float(np.finfo(np.float32).max)
    for shape in [(40,), (8, 5), (9, 2, 2)]:
        for square, is_fine in [(largest, True), (largest * (1 + 2.0**-24), False)]:
            opt = an.Optimizer(
                {"w": np.ones(shape)},
                "numpy",
                state_dtype="float32",
                factored_axes="last_two",
                beta2=0.0,
                eps=square,
                eps_mode="grad_squared",
            )
            if is_fine:
                opt.step({"w": np.ones(shape)})
                assert all((x == largest).all() for x in opt.state["w"].values())
            else:
                with pytest.raises(FloatingPointError, match=r"above 3\.4e38"):
                    opt.step({"w": np.ones(shape)})


# What it says, and what holds it


@pytest.mark.parametrize("value", ["float32", "f4", np.float32, np.dtype("float32")])
def test_it_is_said_as_dtypes_are(value):
    for opt in (an.AdaFactor((3,), state_dtype=value), an.AdaFactor((3, 2), state_dtype=value)):
        assert opt.state_dtype == np.float32
        assert "state_dtype='float32'" in repr(opt)
        with pytest.raises(AttributeError):
            opt.state_dtype = "float64"
    opt = an.Optimizer({"w": np.ones(3)}, state_dtype=value)
    assert opt.param_groups[0]["state_dtype"] == np.float32
    with pytest.raises(ValueError, match="state_dtype is settled"):
        opt.param_groups[0]["state_dtype"] = "float64"
    assert "state_dtype" not in repr(an.AdaFactor((3,)))


@pytest.mark.parametrize("value", ["float16", "bfloat16", "int32", None, 4, "single?"])
def test_other_dtypes_are_refused(value):
    text = rf"state_dtype is {value!r}, must be 'float64' or 'float32'"
    for make in (
        lambda: an.AdaFactor((3,), state_dtype=value),
        lambda: an.Optimizer({"w": np.ones(3)}, state_dtype=value),
    ):
        with pytest.raises(TypeError) as error:
            make()
        assert text in str(error.value)


def test_groups_have_their_own_and_memory_says_so():
    params = {"w": np.ones((20, 30), np.float32), "b": np.ones(30, np.float32)}
    opt = an.Optimizer(
        [{"params": {"w": params["w"]}}, {"params": {"b": params["b"]}, "state_dtype": "float32"}]
    )
    assert opt.memory.by_tensor == {"w": {"exp_row": 160, "exp_col": 240}, "b": {"v": 120}}
    v = opt.state["b"]["v"]
    report = opt.step({"w": np.ones((20, 30)), "b": np.full(30, 2.0)})
    assert v is opt.state["b"]["v"]
    assert (v == 4).all()
    assert report["b"]["rms_grad"] == 2


@pytest.mark.parametrize("shape", [(4, 5), (6,), (), (0, 3), (0,)], ids=str)
def test_one_array_is_copied_pickled_and_saved(shape, tmp_path):
    def steps(opt, param, times):
        for t in times:
            opt.update(param, normal(shape, np.float32, seed=t))
        return digest(opt, param)

    opt, param = an.AdaFactor(shape, lr=0.1, state_dtype="float32"), normal(shape, np.float32)
    steps(opt, param, range(3))
    others = [copy.copy(opt), copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    for name in ("a.npz", "a.safetensors"):
        opt.save(tmp_path / name)
        others.append(an.AdaFactor(shape, state_dtype="float32"))
        others[-1].load(tmp_path / name)
    others.append(an.AdaFactor(shape, state_dtype="float32"))
    others[-1].load_state_dict(opt.state_dict())
    params = [param.copy() for _ in others]
    end = steps(opt, param, range(3, 6))
    for other, own in zip(others, params):
        assert other.state_dtype == np.float32
        assert steps(other, own, range(3, 6)) == end


@pytest.mark.parametrize("dtypes", [("float32", "float64"), ("float64", "float32")])
@pytest.mark.parametrize("shape", [(4, 5), (6,)], ids=str)
def test_one_array_of_the_other_dtype(shape, dtypes, tmp_path):
    there, here = (an.AdaFactor(shape, state_dtype=dtype) for dtype in dtypes)
    there.update(np.ones(shape), normal(shape))
    before = digest(here, np.ones(1))
    with pytest.raises(ValueError) as error:
        here.load_state_dict(there.state_dict())
    assert str(error.value) == (
        f"state_dtype was {dtypes[0]!r} when the state was saved, must be {dtypes[1]!r} as here; "
        "convert=True changes how it is stored"
    )
    assert digest(here, np.ones(1)) == before
    there.save(tmp_path / "a.npz")
    here.load(tmp_path / "a.npz", convert=True)
    assert here.t == 1
    for kind in MEANS:
        if (theirs := getattr(there, kind)) is not None:
            assert getattr(here, kind).tobytes() == theirs.astype(dtypes[1]).tobytes()


@pytest.mark.parametrize("run", RUNS)
def test_models_are_copied_pickled_and_saved(run, tmp_path):
    opt = in_float32(run)
    for t in range(1, 3):
        opt.step(gradients(t))
    others = [copy.deepcopy(opt)]
    if run != "optax":  # whose schedule is a lambda
        others.append(pickle.loads(pickle.dumps(opt)))
    opt.save(tmp_path / "a.safetensors", params=True)
    others.append(in_float32(run))
    others[-1].load(tmp_path / "a.safetensors")
    opt.step(gradients(3))
    for other in others:
        other.step(gradients(3))
        assert digest_of_model(other) == digest_of_model(opt)
        assert {x.dtype for x in means_of(other)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("to_float32", [True, False])
def test_models_of_the_other_dtype(to_float32):
    """Refused with the remedy, which converts: exactly to float64, to nearest to float32."""
    there, here = in_float32("numpy"), optimizer("numpy")
    if to_float32:
        there, here = here, there
    for t in range(1, 3):
        there.step(gradients(t))
    state = there.state_dict(params=True)
    before = digest_of_model(here)
    saved, own = ("float64", "float32") if to_float32 else ("float32", "float64")
    with pytest.raises(ValueError) as error:
        here.load_state_dict(state)
    assert str(error.value) == (
        f"state_dtype of params['w'] was {saved!r} when the state was saved, must be {own!r} as "
        "here; convert=True changes how it is stored"
    )
    assert digest_of_model(here) == before
    report = copy.deepcopy(here).load_state_dict(state, strict=False, convert=True)
    assert set(report.loaded) == set(SHAPES)
    with pytest.raises(ValueError, match="state_dtype was 'float"):  # none is alike
        here.load_state_dict(state, strict=False)
    here.load_state_dict(state, convert=True)
    for mine, theirs in zip(means_of(here), means_of(there)):
        assert mine.tobytes() == theirs.astype(own).tobytes()
    assert all((here.params[name] == param).all() for name, param in there.params.items())


def test_a_header_that_says_what_its_arrays_are_not():
    opt = in_float32("numpy")
    state = opt.state_dict()
    state["v/b"] = state["v/b"].astype(np.float64)
    with pytest.raises(TypeError, match=r"state\['v/b'\] has dtype float64, must be float32"):
        opt.load_state_dict(state)


def test_tensors_that_change_keep_it():
    params = {"w": normal((6, 4), np.float32), "b": normal(6, np.float32), "k": normal((2, 3, 4))}
    opt = an.Optimizer(params, beta1=0.9, state_dtype="float32")
    doubles = an.Optimizer(
        {name: param.copy() for name, param in params.items()}, beta1=0.9, state_dtype="float64"
    )
    for each in (opt, doubles):
        for t in range(3):
            each.step({n: normal(p.shape, np.float32, seed=t) for n, p in each.params.items()})
        each.replace("b", each.params["b"].copy())
        each.resize("w", normal((8, 4), np.float32))
        each.resize("k", normal((2, 3, 3)), axis=2)
        each.reset("b", [1, 2])
        each.add_param_group({"params": {"c": np.ones(5, np.float32)}})
    assert {x.dtype for x in means_of(opt)} == {np.dtype(np.float32)}
    for mine, theirs in zip(means_of(opt), means_of(doubles)):
        np.testing.assert_allclose(mine, theirs, 6 * HALF_UNIT)
    opt.reset("w")
    assert opt.state["w"]["exp_row"].dtype == np.float32
    assert not opt.state["w"]["exp_row"].any()


def test_half_precision_with_masters_and_copies():
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    for masters in ("float32", "split"):
        opt, doubles = (
            an.Optimizer(
                {"w": np.ones((5, 8), bfloat16), "b": np.ones(5, bfloat16)},
                masters=masters,
                state_dtype=dtype,
            )
            for dtype in ("float32", "float64")
        )
        for each in (opt, doubles):
            for t in range(2):
                each.step({"w": normal((5, 8), bfloat16, t), "b": normal(5, bfloat16, t)})
        assert {x.dtype for x in means_of(opt)} == {np.dtype(np.float32)}
        for name, param in opt.params.items():
            theirs = doubles.params[name].astype(np.float64)
            np.testing.assert_allclose(param.astype(np.float64), theirs, 2.0**-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_torchs_state_comes_and_goes_exactly(dtype):
    """torch keeps the state of float32 params in float32; that of float64 does not fit."""
    theirs = {
        "state": {
            0: {
                "step": 3.0,
                "row_var": np.abs(normal((2, 1), dtype)),
                "col_var": np.abs(normal((1, 3), dtype)),
            },
            1: {"step": 3.0, "variance": np.abs(normal(4, dtype))},
        },
        "param_groups": [{"params": [0, 1]}],
    }
    params = {"w": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32)}
    opt = an.Optimizer(params, "torch", state_dtype="float32")
    if dtype == np.float64:
        with pytest.raises(TypeError, match="make the optimizer with state_dtype='float64'"):
            convert.load_torch(opt, theirs)
        return
    convert.load_torch(opt, theirs)
    assert opt.state["b"]["v"].tobytes() == theirs["state"][1]["variance"].tobytes()
    back = convert.to_torch(opt)["state"]
    for position, arrays in theirs["state"].items():
        for key, array in arrays.items():
            assert np.array_equal(back[position][key], array)
            assert key == "step" or back[position][key].dtype == np.float32


def test_a_state_written_to_is_taken_as_it_is():
    """The arrays are the kernels' own memory; other ones in their place are refused."""
    opt = an.AdaFactor((4,), beta2=0.5, state_dtype="float32")
    opt.v[...] = 3
    opt.update(np.ones(4), np.ones(4))
    assert (opt.v == 2).all()
    opt.v.flags.writeable = False
    with pytest.raises(ValueError, match="v is read-only"):
        opt.update(np.ones(4), np.ones(4))
