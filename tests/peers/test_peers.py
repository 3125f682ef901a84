"""Every convention beside the installed library that it is named after, or that shares it.

Of each case, the reference and Optimizer are compared with the library itself, after each step.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache

import numpy as np
import pytest

import adafactor_native as an
from convention_settings import SETTINGS
from model_reference import Run
from peers import model
from peers.cases import CASES, PEERS
from problems import DTYPES

IN_FLOAT32 = 3e-6  # in units of the largest parameter, after 20 steps of both


@pytest.fixture(autouse=True)
def installed(request, case):
    """Skip where a library is missing; with --require-peers, fail."""
    packages = PEERS[CASES[case].peer].packages
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        report = pytest.fail if request.config.getoption("--require-peers") else pytest.skip
        report(f"not installed: {', '.join(missing)}")


@pytest.mark.parametrize("case", CASES)
def test_reference(case):
    """The reference makes the peer's steps: what it says of Optimizer, the peer would."""
    settings, common = SETTINGS[CASES[case].convention], CASES[case].ours
    groups = []
    for group in groups_of(case, np.float64, "ours"):
        params = group.pop("params")
        groups.append({"params": params, **settings(**{**common, **group})})
    run = Run(groups)
    assert_same_params(case, np.float64, run.params, run.step)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_optimizer(case, dtype):
    groups = groups_of(case, dtype, "ours")
    params = {name: param for group in groups for name, param in group["params"].items()}
    opt = an.Optimizer(groups, convention=CASES[case].convention, **CASES[case].ours)
    assert_same_params(case, dtype, params, opt.step)


def assert_same_params(case, dtype, params, step):
    """Take the steps; params, changed in place or replaced by others, must be the peer's."""
    peer = PEERS[CASES[case].peer]
    tolerance = peer.tolerance if dtype == np.float64 else IN_FLOAT32
    largest = dict.fromkeys(params, 0.0)
    for t, (grads, expected) in enumerate(zip(steps_of(case, dtype), peers_steps(case, dtype)), 1):
        step(grads)
        for name, theirs in expected.items():
            assert theirs.dtype == dtype
            largest[name] = max(largest[name], np.max(np.abs(theirs), initial=0))
            error = np.max(np.abs(params[name] - theirs), initial=0)
            assert error <= tolerance * largest[name], (
                f"{name}, step {t}: off by {error / largest[name]:.3g} of the largest"
            )


@cache
def peers_steps(case, dtype):
    """Return name -> parameters after each step of the peer."""
    theirs, module = CASES[case], PEERS[CASES[case].peer].module
    run = getattr(importlib.import_module(f"peers.{module}"), theirs.peer)
    options = theirs.ours if theirs.theirs is None else theirs.theirs
    return run(groups_of(case, dtype, "theirs"), steps_of(case, dtype), **options)


@cache
def steps_of(case, dtype):
    """Return name -> gradient or None for each step."""
    # Of a dead row and a dead column, keras makes 0 / 0 in float32
    dead = dtype == np.float64 or CASES[case].peer != "keras"
    steps = model.gradients(CASES[case].shapes, dtype, dead)
    for name, indices in CASES[case].absent.items():
        for index in indices:
            steps[index][name] = None
    return steps


def groups_of(case, dtype, side):
    """Return groups: new parameters and the options in which a group differs from the case.

    side : whose options, "ours" or "theirs"
    """
    params = model.params(CASES[case].shapes, dtype)
    groups = []
    for group in CASES[case].groups:
        options = group.ours if side == "ours" or group.theirs is None else group.theirs
        groups.append({"params": {name: params.pop(name) for name in group.names}, **options})
    return [*groups, {"params": params}]
