"""Pickles and copies: they continue with the same bits, and with a state of their own."""

import copy
import pickle

import numpy as np
import pytest

import adafactor_native as an
from problems import digest, normal

WAYS = {
    **{
        f"pickle {protocol}": lambda x, protocol=protocol: pickle.loads(pickle.dumps(x, protocol))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
SHAPES = [(), (7,), (5, 9), (2, 3, 4)]


def optimizer_with_history(shape):
    """An optimizer with nothing left at its default, two steps and a skipped one behind it."""
    opt = an.AdaFactor(
        shape, 0.5, 0.75, 1e-8, 0.25, False, num_threads=3, nonfinite="skip", carry_param_rms=True
    )
    param = normal(shape, np.float32)
    for t in range(2):
        opt.update(param, normal(shape, seed=t + 1))
    opt.update(param, np.full(shape, np.nan))
    return opt, param


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_copy_continues(shape, way):
    opt, param = optimizer_with_history(shape)
    twin, same = WAYS[way](opt), param.copy()
    assert repr(twin) == repr(opt)
    assert (twin.t, twin.skipped, twin.shape, twin.factored) == (2, 1, shape, len(shape) == 2)
    for t in range(3):
        grad = normal(shape, seed=t + 10)
        opt.update(param, grad)
        twin.update(same, grad)
        assert digest(twin, same) == digest(opt, param)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_copy_has_a_state_of_its_own(shape, way):
    opt, param = optimizer_with_history(shape)
    before = digest(opt, param)
    twin = WAYS[way](opt)
    twin.lr, twin.eps, twin.nonfinite = 9.0, 1.0, "raise"
    twin.update(param.copy(), normal(shape, seed=5))
    assert digest(opt, param) == before
    assert (opt.lr, opt.eps, opt.nonfinite) == (0.5, 1e-8, "skip")


def test_pickle_continues_in_another_process(python, tmp_path):
    opt, param = optimizer_with_history((5, 9))
    (tmp_path / "run.pickle").write_bytes(pickle.dumps((opt, param)))
    output = python("""
        import pickle, problems
        with open("run.pickle", "rb") as file:
            opt, param = pickle.load(file)
        opt.update(param, problems.normal((5, 9), seed=3))
        print(problems.digest(opt, param))
    """)
    opt.update(param, normal((5, 9), seed=3))
    assert output.strip() == digest(opt, param)
