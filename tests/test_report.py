"""A report goes by name, and as a dict it is strict JSON."""

import json
import pickle

import numpy as np
import pytest

from adafactor_native import Optimizer

COLUMNS = ("rms_grad", "rms_u", "clip_divisor", "rms_param", "step_size", "stepped", "stuck")


def optimizer(**arguments):
    groups = [
        {"params": {"w": np.ones((2, 3))}},
        {"params": {"b": np.ones(3), "c": np.zeros(2)}, "lr": 0.5},
    ]
    return Optimizer(groups, "numpy", **{"lr": lambda t: 1 / t, **arguments})


def gradients(**changes):
    return {"w": np.ones((2, 3)), "b": np.full(3, 2.0), "c": np.ones(2), **changes}


@pytest.mark.parametrize("column", COLUMNS)
def test_columns_go_by_name(column):
    report = optimizer().step(gradients())
    values = getattr(report, column)
    for i, name in enumerate(report.names):
        assert values[name] == values[i] == report[name][column]
    with pytest.raises(KeyError, match="nobody"):
        values["nobody"]
    with pytest.raises(IndexError, match="'w' is a name, must be a position"):
        values[1:]["w"]
    assert type(np.asarray(values)) is np.ndarray and values.shape == (3,)


@pytest.mark.parametrize("left_out", ["w", "b", "c"])
def test_what_was_not_computed_is_none(left_out):
    report = optimizer(scale_parameter=False).step(gradients(**{left_out: None}))
    flat = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    for column in COLUMNS[:5]:
        assert flat[f"{column}/{left_out}"] is None
    assert all(value is None for key, value in flat.items() if key.startswith("rms_param/"))
    assert flat["skipped"] is False and flat["t"] == 1


@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
def test_it_is_strict_json_where_a_step_is_not_finite(nonfinite):
    opt = optimizer(nonfinite=nonfinite, scale_parameter=False)
    report = opt.step(gradients(b=np.full(3, np.nan)))
    flat = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert flat["skipped"] is (nonfinite == "skip") and flat["rms_grad/b"] is None


def test_learning_rates_are_those_of_the_step():
    opt = optimizer()
    for t in (1, 2, 3):
        report = opt.step(gradients())
        assert report.lr == (1 / t, 0.5)
        assert (report.as_dict()["lr/0"], report.as_dict()["lr/1"]) == (1 / t, 0.5)
    assert pickle.loads(pickle.dumps(report)).lr == report.lr
    one = Optimizer([np.ones(3)], lr=0.25, schedule=lambda t: 2.0 * t)
    assert [one.step([np.ones(3)]).as_dict()["lr"] for _ in range(2)] == [0.5, 1.0]
    one.param_groups[0].update(lr=0.125, schedule=None)
    assert one.step([np.ones(3)]).as_dict()["lr"] == 0.125
    assert one.step([np.ones(3)]).as_dict()["lr"] == 0.125
