"""One step beside the reference's, and the table of what may differ."""

import numpy as np

import reference

# Error budget of one step, in units of the machine epsilon. All sums are of positive terms, so they
# keep a relative error: about 0.3 units times the root of the longest chain of additions, 64 in
# float32 and up to 70001 in float64 here.

# exp_row, exp_col and v: each element, relative to itself. Squares are added in float32 where param
# and grad both are.
STATE = {np.float32: 6, np.float64: 8}

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
    """Return a copy of an optimizer's state, as the reference keeps it."""
    arrays = (None if x is None else x.copy() for x in (opt.exp_row, opt.exp_col, opt.v))
    return reference.State(opt.t, *arrays)


def hyper_of(opt):
    """Return an optimizer's hyper-parameters, as the reference takes them."""
    names = ("lr", "beta2", "eps", "clip_threshold", "scale_parameter")
    return {name: getattr(opt, name) for name in names}


def assert_step_matches(opt, param, grad):
    """Take one step with opt; param, state, t and the untouched grad must be the reference's."""
    before = np.array(param, np.float64)
    grad_before = grad.tobytes()
    expected, state = reference.update(param, grad, state_of(opt), **hyper_of(opt))

    assert opt.update(param, grad) is param

    assert grad.tobytes() == grad_before
    assert_state_close(opt, state, budget_of_state(param, grad))
    error = np.abs(param - expected)
    budget = budget_of_param(param, before, expected)
    worst = largest(error / budget)
    assert worst <= 1, f"param is off by {worst:.3g} times its budget"


def assert_state_close(opt, expected, rtol):
    """Every element of the state is within rtol of the reference's, and t is the same."""
    assert opt.t == expected.t
    for name in ("exp_row", "exp_col", "v"):
        mine, theirs = getattr(opt, name), getattr(expected, name)
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            np.testing.assert_allclose(mine, theirs, rtol=rtol, atol=0, err_msg=name)


def largest(values):
    """Largest magnitude, 0 for no values; NaN if there is one."""
    return float(np.max(np.abs(values), initial=0.0))
