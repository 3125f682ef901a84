"""`carry_param_rms`: the same bits without reading param, and what is noticed of others' writes."""

import copy

import numpy as np
import pytest

import adafactor_native as an
from buffers import Buffer
from problems import DTYPE_PAIRS, digest, normal

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


def pair(start, layout="C", **hyper):
    """Return an optimizer that carries and its param, and the same of one that reads."""
    params = [Buffer(start, layout).array for _ in range(2)]
    optimizers = [an.AdaFactor(start.shape, carry_param_rms=c, **hyper) for c in (True, False)]
    return optimizers[0], params[0], optimizers[1], params[1]


def step_alike(carrying, param, reading, copied, grad):
    carrying.update(param, grad)
    reading.update(copied, grad)
    return digest(carrying, param) == digest(reading, copied)


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
@pytest.mark.parametrize("case", CASES)
def test_same_bits(case, dtypes, isa):
    shape, param_layout, grad_layout = CASES[case]
    both = pair(normal(shape, dtypes[0]), param_layout)
    for seed in range(3):
        grad = Buffer(normal(shape, dtypes[1], seed), grad_layout).array
        assert step_alike(*both, grad)


@pytest.mark.parametrize("hyper", HYPER)
@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
def test_same_bits_for_other_forms_of_a_step(hyper, dtypes, isa):
    shape = (531, 317)
    both = pair(normal(shape, dtypes[0]), **HYPER[hyper])
    for seed in range(4):
        assert step_alike(*both, normal(shape, dtypes[1], seed))


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_same_bits_beyond_the_range_of_float32_sums(scale, isa):
    shape = (300, 517)
    both = pair(normal(shape, np.float32, scale=scale), lr=0.5)
    for seed in range(4):
        assert step_alike(*both, normal(shape, np.float32, seed))


def after_two_steps(shape=TILES):
    both = pair(normal(shape, np.float32))
    for seed in (1, 2):
        assert step_alike(*both, normal(shape, np.float32, seed))
    return both


@pytest.mark.parametrize("shape", [TILES, (TILES[0] * TILES[1],)], ids=["matrix", "vector"])
def test_param_is_not_read_where_it_is_not_checked(shape):
    """Otherwise nothing is saved: a change in 1 of 48 tiles, of which 3 are checked, goes unseen."""
    carrying, param, reading, copied = after_two_steps(shape)
    param.reshape(-1)[-1] = copied.reshape(-1)[-1] = 1e3
    assert not step_alike(carrying, param, reading, copied, normal(shape, np.float32))


def test_a_change_of_all_is_found_at_once():
    carrying, param, reading, copied = after_two_steps()
    param *= np.float32(0.99)
    copied *= np.float32(0.99)
    assert step_alike(carrying, param, reading, copied, normal(TILES, np.float32))


@pytest.mark.parametrize("place", [(0, 0), (1500, 1023), (-1, -1)])
def test_a_change_of_one_element_is_found_within_a_rotation(place):
    carrying, param, *_ = after_two_steps()
    grad = normal(TILES, np.float32)
    param[place] = 1e3
    for _ in range(ROTATION):
        carrying.update(param, grad)
    reading, copied = copy.deepcopy(carrying), param.copy()
    reading.param_changed()
    assert step_alike(carrying, param, reading, copied, grad)


def test_param_changed():
    carrying, param, reading, copied = after_two_steps()
    param[-1, -1] = copied[-1, -1] = 1e3
    carrying.param_changed()
    assert step_alike(carrying, param, reading, copied, normal(TILES, np.float32))


def test_another_object_at_the_same_address():
    carrying, param, reading, copied = after_two_steps()
    view = param[:]
    view[-1, -1] = copied[-1, -1] = 1e3
    assert step_alike(carrying, view, reading, copied, normal(TILES, np.float32))


@pytest.mark.parametrize("attribute", ["scale_parameter", "carry_param_rms"])
def test_a_step_in_between_that_carries_nothing(attribute):
    carrying, param, reading, copied = after_two_steps()
    setattr(carrying, attribute, False)
    reading.scale_parameter = carrying.scale_parameter
    assert step_alike(carrying, param, reading, copied, normal(TILES, np.float32, 3))
    setattr(carrying, attribute, True)
    reading.scale_parameter = True
    for seed in (4, 5):
        assert step_alike(carrying, param, reading, copied, normal(TILES, np.float32, seed))


def test_a_refused_step_in_between():
    carrying, param, reading, copied = after_two_steps()
    bad = np.full(TILES, np.nan, np.float32)
    before = digest(carrying, param)
    with pytest.raises(FloatingPointError):
        carrying.update(param, bad)
    assert digest(carrying, param) == before
    for seed in (4, 5):
        assert step_alike(carrying, param, reading, copied, normal(TILES, np.float32, seed))


def test_a_propagated_nan():
    both = pair(normal((9, 17), np.float32), nonfinite="propagate")
    bad = normal((9, 17), np.float32)
    bad[3, 4] = np.nan
    for grad in (bad, normal((9, 17), np.float32)):
        with np.errstate(invalid="ignore"):
            assert step_alike(*both, grad)


def test_a_copy_reads_its_own_param():
    carrying, param, reading, copied = after_two_steps()
    again, its_param = copy.deepcopy(carrying), param.copy()
    its_param[-1, -1] = copied[-1, -1] = 1e3
    assert step_alike(again, its_param, reading, copied, normal(TILES, np.float32))


def test_param_is_not_kept_alive():
    carrying = an.AdaFactor((3, 4), carry_param_rms=True)
    for _ in range(3):  # each likely at the address of the one before
        param, copied = np.ones((3, 4)), np.ones((3, 4))
        param *= 2
        copied *= 2
        reading = copy.deepcopy(carrying)
        reading.carry_param_rms = False
        assert step_alike(carrying, param, reading, copied, np.ones((3, 4)))
        del param
