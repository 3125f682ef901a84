"""`carry_param_rms`: the same bits without reading param, and what is noticed of others' writes."""

import copy
import itertools

import numpy as np
import pytest

import adafactor_native as an
from adafactor_native import Optimizer
from arrays import DTYPE_PAIRS, normal
from buffers import Buffer
from optimizers import KINDS, ByAdaFactor, digest_of_model
from oracle import halves_reference as halves

ROTATION = 16  # steps in which every tile of param is summed again
TILES = (48 * 64, 1024)  # 48 tiles of 64 rows

CASES = {
    "tiles": ((1031, 517), "C", "C"),
    "wide": ((5, 140001), "C", "C"),
    "tall": ((70001, 9), "C", "C"),
    "small": ((7, 5), "C", "C"),
    "Fortran": ((1031, 517), "Fortran", "Fortran"),
    "mixed orders": ((1031, 517), "C", "Fortran"),
    "steps": ((531, 317), "both steps", "C"),
    "misaligned": ((531, 317), "misaligned", "misaligned"),
    "vector": ((200003,), "C", "C"),
    "vector with steps": ((200003,), "column step", "columns reversed"),
    "four axes": ((8, 3, 31, 67), "C", "Fortran"),
}
HYPER = {
    "default": {},
    "direct form": {"eps": 1e-3},
    "double sums": {"eps": 1e-60},
    "large steps": {"lr": 30.0, "clip_threshold": None},
}


def pair(kind, start, layout="C", **hyper):
    """Return a run that carries and one of the same that reads."""
    return [
        kind(Buffer(start, layout).array, carry_param_rms=carries, **hyper)
        for carries in (True, False)
    ]


def step_alike(carrying, reading, grad):
    carrying.step(grad)
    reading.step(grad)
    return carrying.digest() == reading.digest()


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
@pytest.mark.parametrize("case", CASES)
def test_same_bits(case, dtypes, isa, kind):
    shape, param_layout, grad_layout = CASES[case]
    both = pair(kind, normal(shape, dtypes[0]), param_layout)
    for seed in range(3):
        grad = Buffer(normal(shape, dtypes[1], seed), grad_layout).array
        assert step_alike(*both, grad)


@pytest.mark.parametrize("hyper", HYPER)
@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
def test_same_bits_for_other_forms_of_a_step(hyper, dtypes, isa, kind):
    shape = (531, 317)
    both = pair(kind, normal(shape, dtypes[0]), **HYPER[hyper])
    for seed in range(4):
        assert step_alike(*both, normal(shape, dtypes[1], seed))


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_same_bits_beyond_the_range_of_float32_sums(scale, isa, kind):
    shape = (300, 517)
    both = pair(kind, normal(shape, np.float32, scale=scale), lr=0.5)
    for seed in range(4):
        assert step_alike(*both, normal(shape, np.float32, seed))


def after_two_steps(kind, shape=TILES):
    carrying, reading = pair(kind, normal(shape, np.float32))
    for seed in (1, 2):
        assert step_alike(carrying, reading, normal(shape, np.float32, seed))
    return carrying, reading


def write(runs, place, value):
    for run in runs:
        run.param[place] = value


@pytest.mark.parametrize("shape", [TILES, (TILES[0] * TILES[1],)], ids=["matrix", "vector"])
def test_param_is_not_read_where_it_is_not_checked(shape, kind):
    """Otherwise nothing is saved: a change in 1 of 48 tiles, of which 3 are checked, goes unseen."""
    both = after_two_steps(kind, shape)
    write(both, (-1,) * len(shape), 1e3)
    assert not step_alike(*both, normal(shape, np.float32))


def test_a_change_of_all_is_found_at_once(kind):
    both = after_two_steps(kind)
    for run in both:
        run.param[...] *= np.float32(0.99)
    assert step_alike(*both, normal(TILES, np.float32))


@pytest.mark.parametrize("place", [(0, 0), (1500, 1023), (-1, -1)])
def test_a_change_of_one_element_is_found_within_a_rotation(place, kind):
    carrying, _ = after_two_steps(kind)
    grad = normal(TILES, np.float32)
    carrying.param[place] = 1e3
    for _ in range(ROTATION):
        carrying.step(grad)
    reading = copy.deepcopy(carrying)
    reading.param_changed()
    assert step_alike(carrying, reading, grad)


def test_param_changed(kind):
    carrying, reading = after_two_steps(kind)
    write((carrying, reading), (-1, -1), 1e3)
    carrying.param_changed()
    assert step_alike(carrying, reading, normal(TILES, np.float32))


def test_another_object_at_the_same_address():
    """An AdaFactor is given one at each step, an Optimizer keeps its own."""
    carrying, reading = after_two_steps(KINDS["AdaFactor"])
    write((carrying, reading), (-1, -1), 1e3)
    carrying.param = carrying.param[:]
    assert step_alike(carrying, reading, normal(TILES, np.float32))


@pytest.mark.filterwarnings("ignore:Setting the dtype:DeprecationWarning")
def test_an_array_that_has_another_dtype_now():
    """Every tile is read anew, though the object is the same and the tiles that are checked stay zeros."""
    start, grad = np.zeros(TILES, np.float16), np.zeros(TILES, np.float32)
    start[-1], grad[-1] = 3, normal(TILES[1:], np.float32)
    carrying, reading = pair(KINDS["AdaFactor"], start)
    for _ in range(2):
        assert step_alike(carrying, reading, grad)
    for run in (carrying, reading):
        run.param.dtype = halves.bfloat16
    assert step_alike(carrying, reading, grad)


def test_a_step_in_between_that_carries_nothing(kind):
    carrying, reading = after_two_steps(kind)
    settings = ["scale_parameter"]
    if kind is KINDS["AdaFactor"]:  # of an Optimizer it is settled
        settings.append("carry_param_rms")
    for name in settings:
        carrying.set(**{name: False})
        reading.set(scale_parameter=carrying.get("scale_parameter"))
        assert step_alike(carrying, reading, normal(TILES, np.float32, 3))
        carrying.set(**{name: True})
        reading.set(scale_parameter=True)
        for seed in (4, 5):
            assert step_alike(carrying, reading, normal(TILES, np.float32, seed))


def test_a_refused_step_in_between(kind):
    carrying, reading = after_two_steps(kind)
    before = carrying.digest()
    with pytest.raises(FloatingPointError):
        carrying.step(np.full(TILES, np.nan, np.float32))
    assert carrying.digest() == before
    for seed in (4, 5):
        assert step_alike(carrying, reading, normal(TILES, np.float32, seed))


def test_a_propagated_nan(kind):
    both = pair(kind, normal((9, 17), np.float32), nonfinite="propagate")
    bad = normal((9, 17), np.float32)
    bad[3, 4] = np.nan
    for grad in (bad, normal((9, 17), np.float32)):
        with np.errstate(invalid="ignore"):
            assert step_alike(*both, grad)


def test_a_copy_reads_its_own_param(kind):
    carrying, reading = after_two_steps(kind)
    again = copy.deepcopy(carrying)
    write((again, reading), (-1, -1), 1e3)
    assert step_alike(again, reading, normal(TILES, np.float32))


def test_param_is_not_kept_alive():
    opt = an.AdaFactor((3, 4), carry_param_rms=True)
    for _ in range(3):  # each likely at the address of the one before
        carrying = ByAdaFactor.of(opt, np.full((3, 4), 2.0))
        reading = copy.deepcopy(carrying)
        reading.set(carry_param_rms=False)
        assert step_alike(carrying, reading, np.ones((3, 4)))
        carrying.param = None


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        *itertools.product(["nearest", "stochastic", "masters"], halves.HALVES),
        ("split", halves.bfloat16),
    ],
    ids=str,
)
def test_what_is_carried_of_a_model_is_the_squares_of_rounded_params(options, dtype):
    given = {
        "nearest": {},
        "stochastic": {"rounding": "stochastic"},
        "masters": {"masters": "float32"},
        "split": {"masters": "split"},
    }[options]
    shapes = [(37, 29), (3, 2100), (700, 5), (2051,), (), (40, 9, 3, 3), (3, 20, 33), (0, 4)]
    shapes.append((700, 900))

    def bits(carries):
        params = [normal(shape, dtype, seed=i) for i, shape in enumerate(shapes)]
        opt = Optimizer(params, convention="numpy", lr=0.1, carry_param_rms=carries, **given)
        for t in range(4):
            opt.step([normal(shape, dtype, seed=t) for shape in shapes])
        return digest_of_model(opt)

    assert bits(False) == bits(True)


def test_params_changed_of_a_model():
    shapes = [(4, 5), (5,), (2, 3, 4), ()]
    both = [
        Optimizer(
            [normal(shape, np.float32, seed=10 * i) for i, shape in enumerate(shapes)],
            convention="numpy",
            carry_param_rms=carries,
        )
        for carries in (True, False)
    ]
    for t in range(4):
        for opt in both:
            if t == 2:
                opt.params["0"][0, 0] *= 100.0
                opt.params_changed()
            opt.step([normal(shape, np.float32, seed=t + 10 * i) for i, shape in enumerate(shapes)])
    assert digest_of_model(both[0]) == digest_of_model(both[1])
