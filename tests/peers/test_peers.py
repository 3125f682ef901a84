"""Every convention beside the installed library that it is named after, or that shares it.

Of each case, the reference and Optimizer are compared with the library itself, after each step.
"""

from __future__ import annotations

import importlib
from functools import cache

import numpy as np
import pytest

import adafactor_native as an
from arrays import DTYPES
from compare import Trail
from peers.cases import CASES, PEERS, theirs_of

IN_FLOAT32 = 3e-6  # in units of the largest parameter, after 20 steps of both


@pytest.fixture(autouse=True)
def installed(require_installed, case):
    require_installed(*PEERS[CASES[case].peer].packages)


@pytest.mark.parametrize("case", CASES)
def test_reference(case):
    """The reference makes the peer's steps: what it says of Optimizer, the peer would."""
    run = CASES[case].reference(np.float64)
    assert_same_params(case, np.float64, run.params, run.step)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_optimizer(case, dtype):
    ours = CASES[case]
    opt = an.Optimizer(ours.our_groups(dtype), ours.convention, **ours.ours)
    assert_same_params(case, dtype, opt.params, opt.step)


def assert_same_params(case, dtype, params, step):
    """Take the steps; params, changed in place or replaced by others, must be the peer's."""
    tolerance = PEERS[CASES[case].peer].tolerance if dtype == np.float64 else IN_FLOAT32
    trail = Trail(params, tolerance)
    for grads, theirs in zip(CASES[case].gradients(dtype), peers_steps(case, dtype)):
        assert all(param.dtype == dtype for param in theirs.values())
        step(grads)
        trail.check(params, theirs)


@cache
def peers_steps(case, dtype):
    """Return name -> parameters after each step of the peer."""
    theirs = CASES[case]
    module = importlib.import_module(f"peers.{PEERS[theirs.peer].module}")
    run = getattr(module, theirs.peer)
    return run(theirs.their_groups(dtype), theirs.gradients(dtype), **theirs_of(theirs))
