"""Steps beside the reference's: one by one within a table of errors, and whole runs of models."""

import numpy as np

from optimizers import ByAdaFactor
from oracle import array_reference

# Error budget of one step, in units of the machine epsilon. All sums are of positive terms, so they
# keep a relative error: about 0.3 units times the root of the longest chain of additions, 64 in
# float32 and up to 70001 in float64 here.

# exp_row, exp_col and v: each element, relative to itself. Squares are added in float32 where param
# and grad both are.
STATE = {np.float32: 6, np.float64: 8}

# And as much again when it is stored; in float64 that is one of the roundings above.
STATE_STORING = {np.float32: 0.51, np.float64: 0}

# The change of param, each element relative to itself: six roundings in a row, and half of the
# error of each sum it is scaled by. float32 as soon as param is, for RMS(param) is summed in it.
UPDATE = {np.float32: 4, np.float64: 48}

# The new param, each element relative to itself before or after, whichever is larger: half a unit of
# its own dtype when it is stored, and in float64 as much again for the reference, stored too.
STORING = {np.float32: 0.51, np.float64: 1.01}


def budget_of_state(param, grad):
    both = {param.dtype.type, grad.dtype.type}
    return relative(STATE, np.float32 if both == {np.float32} else np.float64)


def budget_of_param(param, before, after):
    return (
        relative(UPDATE, param.dtype.type) * np.abs(after - before)
        + relative(STORING, param.dtype.type) * np.maximum(np.abs(before), np.abs(after))
        + np.finfo(param.dtype).tiny  # below it, numbers lose digits one by one
    )


def relative(units, dtype):
    return units[dtype] * np.finfo(dtype).eps


def state_of(opt):
    """Return a copy of an AdaFactor's state, as the reference keeps it."""
    arrays = (None if x is None else x.copy() for x in (opt.exp_row, opt.exp_col, opt.v))
    return array_reference.State(opt.t, *arrays)


def hyper_of(opt):
    """Return an AdaFactor's hyper-parameters, as the reference takes them."""
    return {name: getattr(opt, name) for name in HYPER}


HYPER = ("lr", "beta2", "eps", "clip_threshold", "scale_parameter")


def assert_step_matches(opt, param, grad):
    """Take one step with an AdaFactor; see assert_run_matches."""
    assert_run_matches(ByAdaFactor.of(opt, param), grad)


def assert_run_matches(run, grad):
    """Take one step; param, state, t and the untouched grad must be the reference's."""
    param = run.param
    before = np.array(param, np.float64)
    grad_before = grad.tobytes()
    state = array_reference.State(run.t, **{k: np.float64(x) for k, x in run.state.items()})
    hyper = {name: run.get(name) for name in HYPER}
    expected, state = array_reference.update(param, grad, state, **hyper)

    run.step(grad)

    assert grad.tobytes() == grad_before
    assert run.t == state.t
    rtol = budget_of_state(param, grad)
    for kind in ("exp_row", "exp_col", "v"):
        theirs = getattr(state, kind)
        assert (kind in run.state) == (theirs is not None), kind
        if theirs is not None:
            mine = run.state[kind]
            stored = relative(STATE_STORING, mine.dtype.type)
            tiny = np.finfo(mine.dtype).tiny if mine.dtype == np.float32 else 0  # as for param
            np.testing.assert_allclose(mine, theirs, rtol + stored, stored * tiny, err_msg=kind)
    error = np.abs(param - expected)
    budget = budget_of_param(param, before, expected)
    worst = largest(error / budget)
    assert worst <= 1, f"param is off by {worst:.3g} times its budget"


def largest(values):
    """Largest magnitude, 0 for no values; NaN if there is one."""
    return float(np.max(np.abs(values), initial=0.0))


class Trail:
    """Checks each step within a tolerance, in units of the largest number a tensor has held.

    Begun with the parameters before the first step.
    """

    def __init__(self, params, tolerance):
        self._largest = {name: largest(param) for name, param in params.items()}
        self._tolerance = tolerance
        self._t = 0

    def check(self, params, expected):
        """Params, name -> array, must be close to those expected, and of the same names."""
        self._t += 1
        assert params.keys() == expected.keys() == self._largest.keys()
        for name, theirs in expected.items():
            unit = self._largest[name] = max(self._largest[name], largest(theirs))
            error = largest(params[name] - theirs)
            assert error <= self._tolerance * unit, (
                f"{name}, step {self._t}: off by {error:.3g}, its largest was {unit:.3g}"
            )


def assert_state_close(mine, expected, rtol):
    """Of a tensor, the same kinds of arrays; means relative to each, m to its largest number."""
    assert mine.keys() == expected.keys()
    for kind, theirs in expected.items():
        atol = rtol * largest(theirs) if kind == "m" else 0
        np.testing.assert_allclose(mine[kind], theirs, rtol, atol, err_msg=kind)
