"""A step leaves nothing but finite numbers, or it is refused with nothing changed."""

import copy

import ml_dtypes
import numpy as np
import pytest

from adafactor_native import AdaFactor, Optimizer, SkippedStepWarning

BF16 = np.dtype(ml_dtypes.bfloat16)
# Unfactored, factored as one matrix, as many small ones, as several large ones.
SHAPES = {"vector": (1500,), "matrix": (70, 40), "small": (30, 16, 3, 3), "batch": (3, 40, 50)}
FACTORED = {"paper": {}, "torch": {}, "keras": {}, "huggingface": {"factored_axes": "last"}}


def largest(dtype):
    return float(ml_dtypes.finfo(dtype).max)


def arrays_of(opt, copies=None):
    arrays = [*opt.params.values(), *(x for kinds in opt.state.values() for x in kinds.values())]
    return arrays + list((copies or {}).values())


def bits_of(opt, copies=None):
    return [array.tobytes() for array in arrays_of(opt, copies)], opt.t, opt.counts.tolist()


def is_finite(arrays):
    return all(np.isfinite(a.astype(np.float64)).all() for a in arrays if a.dtype != np.uint16)


def in_layout(array, layout):
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "strided":
        wide = np.zeros([2 * n for n in array.shape], array.dtype)
        wide[tuple(slice(None, None, 2) for _ in array.shape)] = array
        return wide[tuple(slice(None, None, 2) for _ in array.shape)]
    return array


def at_the_edge(shape, dtype, fraction, rng):
    """Return numbers of which a few are `fraction` of the dtype's largest."""
    param = rng.standard_normal(shape).astype(dtype)
    for k in rng.integers(0, param.size, 3):
        param.flat[k] = np.array(largest(dtype) * fraction * rng.choice([-1, 1]), np.float64)
    return param


# What is stored how: dtype of param, of the gradient, and arguments.
STORAGE = {
    "float16": (np.float16, np.float16, {}),
    "bfloat16": (BF16, BF16, {}),
    "float32": (np.float32, np.float32, {}),
    "float64": (np.float64, np.float64, {}),
    "float16 at random": (np.float16, np.float32, {"rounding": "stochastic"}),
    "bfloat16 at random": (BF16, np.float32, {"rounding": "stochastic"}),
    "masters of float16": (np.float16, np.float16, {"masters": "float32"}),
    "masters of bfloat16": (BF16, BF16, {"masters": "float32"}),
    "split": (BF16, BF16, {"masters": "split"}),
    "copy of float16": (np.float32, np.float32, {"copies": np.float16}),
    "copy of bfloat16": (np.float32, np.float32, {"copies": BF16}),
    "momentum": (np.float32, np.float32, {"beta1": 0.5}),
    "momentum of bfloat16": (np.float32, np.float32, {"beta1": 0.5, "momentum_dtype": "bfloat16"}),
    "float16 with momentum": (np.float16, np.float32, {"beta1": 0.5}),
}


def model(storage, kind, scaled, layout="C", **arguments):
    """Return an optimizer of one param at its dtype's edge, its copies, and gradients by step."""
    dtype, grad_dtype, switches = STORAGE[storage]
    rng = np.random.default_rng(len(storage) + len(kind))
    switches = dict(switches)
    shape, edge = SHAPES[kind], np.dtype(switches.get("copies", dtype))
    fraction = 0.999 if edge == np.float64 or not scaled else 0.99
    param = at_the_edge(shape, dtype, fraction, rng)
    if "copies" in switches:
        param = at_the_edge(shape, edge, fraction, rng).astype(dtype)
        switches["copies"] = {"w": in_layout(param.astype(edge), layout)}
    switches.update(relative_step=False, scale_parameter=scaled, eps_scale=0.0)
    switches["lr"] = 0.5 if scaled else largest(edge) / 4
    opt = Optimizer({"w": in_layout(param, layout)}, **{**switches, **arguments})
    grads = [in_layout(rng.standard_normal(shape).astype(grad_dtype), layout) for _ in range(4)]
    return opt, switches.get("copies"), grads


@pytest.mark.parametrize("layout", ["C", "F", "strided"])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("storage", STORAGE)
def test_refused_if_and_only_if_a_result_is_infinite(storage, kind, scaled, layout):
    """What IEEE arithmetic makes infinite is refused, whole; everything else is stepped."""
    if scaled and storage == "float64":
        return  # the squares of the edge overflow: refused for that
    refused = 0
    for factor in (1.0, 1e-2, 1e-4, 1e-6):
        opt, copies, grads = model(storage, kind, scaled, layout)
        opt.param_groups[0]["lr"] *= factor
        for grad in grads:
            twin = copy.deepcopy(opt)
            twin.nonfinite = "propagate"
            twin_copies = [tensor.copy for tensor in twin.tensors if tensor.copy is not None]
            twin.step([grad])
            before = bits_of(opt, copies)
            if is_finite([*arrays_of(twin), *twin_copies]):
                assert opt.step([grad]).stepped.all()
                assert bits_of(opt)[0] == bits_of(twin)[0]
                continue
            refused += 1
            with pytest.raises(FloatingPointError, match=r"params\['w'\]\[.*infinite: it must be"):
                opt.step([grad])
            assert bits_of(opt, copies) == before
    if not scaled:
        assert refused


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("storage", ["float16", "float32", "momentum", "split"])
@pytest.mark.parametrize("how", ["skip", "tensor", "skip tensor", "clipped", "AdaFactor"])
def test_policies(how, storage, kind):
    if how == "AdaFactor":
        dtype = STORAGE[storage][0]
        param = np.full(SHAPES["vector"], largest(dtype) * 0.999, dtype)
        opt = AdaFactor(param.shape, lr=largest(dtype) / 50, scale_parameter=False)
        before = param.copy()
        with pytest.raises(FloatingPointError, match=r"param\[0\] is .* infinite"):
            opt.update(param, np.full(param.shape, -1.0, np.float32))
        assert np.array_equal(param, before)
        assert opt.t == 0
        opt.update(param, np.ones(param.shape, np.float32))
        assert opt.t == 1
        return
    arguments = {
        "skip": {"nonfinite": "skip"},
        "tensor": {"atomic": "tensor"},
        "skip tensor": {"nonfinite": "skip", "atomic": "tensor"},
        "clipped": {"max_grad_norm": 0.5},
    }[how]
    opt, _, _ = model(storage, kind, False, **arguments)
    opt.params["w"][...] = largest(STORAGE[storage][0]) * 0.999
    opt.params_changed()
    grad = np.full(SHAPES[kind], -1.0, np.float32)
    before = bits_of(opt)
    if "skip" in how:
        with pytest.warns(SkippedStepWarning, match="left out"):
            assert opt.step([grad]).skipped
    else:
        with pytest.raises(FloatingPointError, match="nothing was changed"):
            opt.step([grad])
    assert bits_of(opt) == before
    assert opt.step([-grad]).stepped.all()
    assert is_finite(arrays_of(opt))


def test_the_element_that_is_named():
    for kind, shape in SHAPES.items():
        for layout in ("C", "F"):
            param = in_layout(np.ones(shape, np.float32), layout)
            place = tuple(n // 2 for n in shape)
            param[place] = 3.4e38
            opt = Optimizer({"w": param}, lr=3e37, scale_parameter=False, relative_step=False)
            named = ", ".join(str(k) for k in place)
            with pytest.raises(FloatingPointError) as error:
                opt.step([np.full(shape, -1.0, np.float32)])
            assert str(error.value).startswith(f"params['w'][{named}] is 3.3999"), (kind, layout)


def test_momentum_that_grows_beyond_its_dtype():
    param = np.ones((6, 4), np.float32)
    opt = Optimizer({"w": param}, lr=1e38, scale_parameter=False, relative_step=False, beta1=0.9)
    for _ in range(100):
        before = bits_of(opt)
        try:
            opt.step([np.full((6, 4), 0.5, np.float32)])
        except FloatingPointError:
            assert bits_of(opt) == before
            break
        assert is_finite(arrays_of(opt))
    else:
        pytest.fail("1e38 a step leaves the range of float32")


BAD_MEANS = [np.nan, np.inf, -np.inf, -1.0, -1e-30, 1e308]


def stepped(kind, dtype=np.float32, **arguments):
    params = {kind: np.ones(SHAPES[kind], dtype)}
    opt = Optimizer(params, lr=0.1, **arguments)
    grads = [np.full(SHAPES[kind], 0.5, dtype)]
    opt.step(grads)
    return opt, grads


@pytest.mark.parametrize("bad", BAD_MEANS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, BF16])
@pytest.mark.parametrize("kind", SHAPES)
def test_a_second_moment_that_no_step_leaves(kind, dtype, bad):
    """Every element is looked at after somebody asked for the state; the message names it."""
    opt, grads = stepped(kind, dtype)
    for word in ("exp_row", "exp_col", "v"):
        if word not in opt.state[kind]:
            continue
        size = opt.state[kind][word].size
        for place in (0, size // 2, size - 1):
            array = opt.state[kind][word]
            kept = array.flat[place]
            array.flat[place] = bad
            where = ", ".join(str(k) for k in np.unravel_index(place, array.shape))
            del array
            before = bits_of(opt)
            opt.step([None])
            with pytest.raises(FloatingPointError) as error:
                opt.step(grads)
            assert str(error.value).startswith(f"{word}[{where}] of '{kind}' is ")
            assert bits_of(opt)[0] == before[0]
            opt.state[kind][word].flat[place] = kept
            assert opt.step(grads).stepped.all()


def test_a_negative_zero_is_a_zero():
    opt, param = AdaFactor((24,)), np.ones(24, np.float32)
    opt.v[3] = -0.0
    opt.update(param, param.copy())
    assert opt.t == 1


@pytest.mark.parametrize("bad", BAD_MEANS)
@pytest.mark.parametrize("shape", [(6, 4), (24,), (500, 200)])
def test_a_second_moment_of_one_array(shape, bad):
    opt, param = AdaFactor(shape), np.ones(shape, np.float32)
    opt.update(param, param.copy())
    for word in ("exp_row", "exp_col") if len(shape) == 2 else ("v",):
        before = param.copy()
        kept = getattr(opt, word)[-1]
        getattr(opt, word)[-1] = bad
        with pytest.raises(FloatingPointError, match=rf"{word}\[\d+\] is"):
            opt.update(param, np.ones(shape, np.float32))
        assert np.array_equal(param, before)
        assert opt.t == 1
        getattr(opt, word)[-1] = kept


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("dtype", "momentum_dtype"),
    [(np.float32, None), (np.float64, None), (np.float32, "bfloat16"), (BF16, "bfloat16")],
)
@pytest.mark.parametrize("kind", SHAPES)
def test_a_first_moment_that_is_not_finite(kind, dtype, momentum_dtype, bad):
    opt, grads = stepped(kind, dtype, beta1=0.9, momentum_dtype=momentum_dtype)
    held = opt.state[kind]["m"]  # somebody may write to it at any time
    for place in (0, held.size // 2, held.size - 1):
        for _ in range(2):
            assert opt.step(grads).stepped.all()
        kept = held.flat[place]
        held.flat[place] = bad
        before = bits_of(opt)
        where = ", ".join(str(k) for k in np.unravel_index(place, held.shape))
        with pytest.raises(FloatingPointError) as error:
            opt.step(grads)
        assert str(error.value).startswith(f"m[{where}] of '{kind}' is ")
        assert bits_of(opt) == before
        held.flat[place] = kept


@pytest.mark.parametrize("word", ["m", "exp_row", "v"])
def test_what_is_written_behind_our_back_is_found_within_a_rotation(word):
    """By way of an object that was kept: seen in one of 16 steps, before the next is taken."""
    kind = "vector" if word == "v" else "matrix"
    opt, grads = stepped(kind, BF16, beta1=0.9, masters="float32", scale_parameter=False)
    tensor = opt.param_groups[0].tensors[0]
    opt.step(grads)
    array = getattr(tensor, word)
    array.flat[array.size // 3] = -1e30 if word in ("exp_row", "v") else np.nan
    del array
    with pytest.raises(FloatingPointError):
        for _ in range(17):
            opt.step([np.zeros(SHAPES[kind], np.float32)])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("kind", SHAPES)
def test_masters_that_are_not_finite(kind, scaled, bad):
    opt, grads = stepped(kind, BF16, masters="float32", scale_parameter=scaled)
    kept = opt.state[kind]["master"].flat[1]
    opt.state[kind]["master"].flat[1] = bad
    before = bits_of(opt)
    with pytest.raises(FloatingPointError, match=f"'{kind}'"):
        opt.step(grads)
    assert bits_of(opt) == before
    opt.state[kind]["master"].flat[1] = kept
    assert opt.step(grads).stepped.all()


def test_propagate_takes_it_all_and_forgets_what_was_known():
    opt, grads = stepped("vector", beta1=0.9, nonfinite="propagate")
    opt.state["vector"]["m"][0] = np.nan
    assert opt.step(grads).stepped.all()
    assert np.isnan(opt.params["vector"][0])
    opt.nonfinite = "raise"
    with pytest.raises(FloatingPointError, match=r"m\[0\]|\[0\] is nan"):
        opt.step(grads)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("storage", STORAGE)
def test_a_long_run_of_sound_numbers_is_never_refused(storage, scaled):
    dtype, grad_dtype, switches = STORAGE[storage]
    switches = dict(switches)
    rng = np.random.default_rng(3)
    params = {kind: rng.standard_normal(shape).astype(dtype) for kind, shape in SHAPES.items()}
    if "copies" in switches:
        switches["copies"] = {k: p.astype(switches["copies"]) for k, p in params.items()}
    opt = Optimizer(params, lr=0.02, relative_step=False, scale_parameter=scaled, **switches)
    for _ in range(40):
        grads = [rng.standard_normal(shape).astype(grad_dtype) for shape in SHAPES.values()]
        assert opt.step(grads).stepped.all()


@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("kind", SHAPES)
def test_no_step_depends_on_whether_somebody_looked_at_the_state(kind, momentum):
    """Of a param that its copy does not hold, whose u has squares that float32 loses."""
    outcomes = []
    for looks in (False, True):
        param = np.full(SHAPES[kind], 3e37, np.float32)
        copies = {"w": np.zeros(SHAPES[kind], np.float16)}
        copies["w"][...] = np.inf
        opt = Optimizer(
            {"w": param},
            lr=1e-7,
            eps=1e-7,
            eps_mode="grad_squared",
            scale_parameter=False,
            relative_step=False,
            beta1=momentum,
            copies=copies,
            nonfinite="skip",
        )
        stepped = []
        for size in (0.0, 1e-38, 1e-38, 1e-36, 0.0, 1e-38):
            if looks:
                assert set(opt.state["w"])
            report = opt.step([np.full(SHAPES[kind], size, np.float32)])
            stepped.append(bool(report.stepped.all()))
        outcomes.append(stepped)
    assert outcomes[0] == outcomes[1] == [False] * 6


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("kind", SHAPES)
def test_a_decay_that_leaves_the_dtype_without_a_step(kind, storage):
    """By 14 times param, where the gradient is zero; half of it, and all stays finite."""
    dtype, grad_dtype, switches = STORAGE[storage]
    edge = largest(switches.get("copies", dtype))
    for fraction, stays in ((0.9, False), (0.05, True)):
        param = np.ones(SHAPES[kind], dtype)
        param.flat[3] = edge * fraction
        given = dict(switches)
        if "copies" in given:
            given["copies"] = {"w": param.astype(given["copies"])}
        opt = Optimizer(
            {"w": param},
            lr=1.0,
            scale_parameter=False,
            relative_step=False,
            weight_decay=14.0,
            weight_decay_mode="alone",
            **given,
        )
        grad = np.zeros(SHAPES[kind], grad_dtype)
        if stays:
            assert opt.step([grad]).stepped.all()
            assert is_finite(arrays_of(opt))
        else:
            before = bits_of(opt)
            with pytest.raises(FloatingPointError, match="infinite"):
                opt.step([grad])
            assert bits_of(opt) == before


@pytest.mark.parametrize("decay", [1.2, 1.9])
@pytest.mark.parametrize("storage", [kind for kind in STORAGE if "64" not in kind])
@pytest.mark.parametrize("kind", SHAPES)
def test_a_decay_whose_product_with_param_is_infinite(kind, storage, decay):
    """But not what is left of param."""
    dtype, grad_dtype, switches = STORAGE[storage]
    edge = largest(switches.get("copies", dtype))
    param = np.ones(SHAPES[kind], dtype)
    param.flat[3] = edge * 0.95
    given = dict(switches)
    if "copies" in given:
        given["copies"] = {"w": param.astype(given["copies"])}
    opt = Optimizer(
        {"w": param},
        lr=1.0,
        scale_parameter=False,
        relative_step=False,
        weight_decay=decay,
        weight_decay_mode="alone",
        **given,
    )
    expected = (1 - decay) * float(param.flat[3])
    assert opt.step([np.ones(SHAPES[kind], grad_dtype)]).stepped.all()
    assert is_finite(arrays_of(opt))
    rtol = 2 * float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(float(param.flat[3]), expected, rtol=rtol, atol=1.1)  # of u
