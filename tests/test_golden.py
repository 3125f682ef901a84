"""Short runs whose results are kept in data/golden.json, made by golden.py."""

import json

import numpy as np
import pytest

import adafactor_native as an
import golden
from arrays import DTYPES
from compare import largest

RUNS = json.loads(golden.KEPT.read_text())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{np.shape(run['param'])} {run['hyper']}")
def test_run_ends_where_it_did(run, dtype, isa):
    param = np.array(run["param"], dtype)
    opt = an.AdaFactor(param.shape, **run["hyper"])
    for grad in run["grads"]:
        opt.update(param, np.array(grad, dtype))

    tolerance = 16 * np.finfo(dtype).eps
    after = {name: x if x is None else np.array(x) for name, x in run["after"].items()}
    assert largest(param - after["param"]) <= tolerance * largest(after["param"])
    for name in ("exp_row", "exp_col") if opt.factored else ("v",):
        np.testing.assert_allclose(getattr(opt, name), after[name], rtol=tolerance)


def test_reference_still_makes_them():
    """The file is the script's own: nobody edited one without the other."""
    made_again = golden.make_runs()
    assert len(made_again) == len(RUNS)
    for made, kept in zip(made_again, RUNS):
        assert made["hyper"] == kept["hyper"]
        for name in ("param", "grads"):
            np.testing.assert_array_equal(made[name], kept[name])
        for name, x in kept["after"].items():
            assert (x is None) == (made["after"][name] is None)
            if x is not None:
                np.testing.assert_allclose(made["after"][name], x, rtol=1e-14, atol=0)
