"""Everything that a step can do, done in pieces: what is kept, rounded, clipped, scaled and left out."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from adafactor_native import SkippedStepWarning
from sharded import cases
from sharded.cuts import local
from sharded.thread_engine import on_ranks

LAYOUTS = ["rows", "cols", "grid", "flat", "hybrid", "owned"]
BFLOAT16 = ml_dtypes.bfloat16

OPTIONS = {
    "momentum": (np.float32, {"beta1": 0.9}),
    "momentum of u": (np.float32, {"beta1": 0.9, "momentum_of": "u"}),
    "bfloat16 momentum": (np.float32, {"beta1": 0.9, "momentum_dtype": "bfloat16"}),
    "decay": (np.float32, {"weight_decay": 0.1}),
    "decay by the step": (np.float32, {"weight_decay": 0.1, "weight_decay_mode": "step"}),
    "mask": (np.float32, {"weight_decay": 0.1, "weight_decay_mask": {"w", "b"}}),
    "float32 state": (np.float32, {"state_dtype": "float32"}),
    "global norm": (np.float32, {"max_grad_norm": 0.1}),
    "global norm that does not clip": (np.float32, {"max_grad_norm": 1e9}),
    "spikes": (np.float32, {"skip_above": 1e6}),
    "per matrix": (np.float32, {"rms_scope": "matrix", "factored_axes": "last_two"}),
    "batches": (np.float32, {"factored_axes": "last_two"}),
    "no parameter scale": (np.float32, {"scale_parameter": False}),
    "no clipping": (np.float32, {"clip_threshold": None}),
    "maximize": (np.float32, {"maximize": True}),
    "direct eps": (np.float32, {"eps": 1e-2, "eps_mode": "both"}),
    "clamped eps": (np.float32, {"eps": 1e-2, "eps_mode": "clamp"}),
    "eps at the root": (np.float32, {"eps": 1e-2, "eps_mode": "root"}),
    "schedule": (np.float32, {"lr": lambda t: 0.1 / t}),
    "half": (np.float16, {}),
    "bfloat16": (BFLOAT16, {}),
    "masters": (BFLOAT16, {"masters": "float32"}),
    "split masters": (BFLOAT16, {"masters": "split"}),
    "stochastic": (BFLOAT16, {"rounding": "stochastic", "seed": 3}),
}

# Options whose results are rounded at random, or to halves: a last bit of a sum moves one of many
# numbers to its neighbour.
NEIGHBOURS = ("half", "bfloat16", "stochastic", "bfloat16 momentum")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("option", OPTIONS)
def test_option(option, layout):
    dtype, settings = OPTIONS[option]
    alone, reports = cases.one_process("paper", dtype, settings)

    def step(engine):
        opt, own = cases.on_rank(engine, layout, "paper", dtype, settings)
        return opt.state_dict(True, gather=True), [cases.numbers_of(report) for report in own]

    expected = alone.state_dict(True)
    for state, own in on_ranks(3, step):
        for report, numbers in zip(reports, own):
            for key, array in cases.numbers_of(report).items():
                np.testing.assert_allclose(numbers[key], array, rtol=1e-5, err_msg=key)
        assert state.keys() == expected.keys()
        for key, array in expected.items():
            kind, _, name = key.partition("/")
            if name and kind not in ("low",):
                require_near(values_of(state[key]), values_of(array), option, key)


def values_of(array):
    """Return an array of a state as float64, bfloat16 from its bits."""
    if array.dtype == np.uint16:
        array = array.view(BFLOAT16)
    return array.astype(np.float64)


def require_near(got, expected, option, key):
    scale = np.abs(expected).max(initial=0)
    if option not in NEIGHBOURS:
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * scale, err_msg=key)
        return
    differs = ~np.isclose(got, expected, rtol=1e-5, atol=1e-6 * scale)
    assert differs.mean() < 0.01, (key, differs.mean())
    np.testing.assert_allclose(got, expected, rtol=0.01, atol=1e-6 * scale, err_msg=key)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_copies(layout):
    """Half-precision copies of float32 params are theirs, rounded."""

    def step(engine):
        pieces = cases.pieces_here(engine, layout)
        params = {
            n: local(a, pieces[n]) for n, a in cases.arrays(np.float32, 0).items() if n in pieces
        }
        copies = {name: param.astype(BFLOAT16) for name, param in params.items()}
        shards = {name: shard for name, (shard, _) in pieces.items() if shard is not None}
        opt = cases.Optimizer(params, copies=copies, comm=engine, shards=shards)
        grads = cases.arrays(np.float32, 1)
        opt.step({name: local(grads[name], pieces[name]) for name in pieces})
        for name, copy in copies.items():
            np.testing.assert_array_equal(copy, params[name].astype(BFLOAT16))

    on_ranks(3, step)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("how", ["grad_scale", "accumulate", "measure"])
def test_gradients_in_other_ways(how, layout):
    alone, _ = cases.one_process("paper", np.float64, {})
    grads = cases.arrays(np.float64, 9)
    alone.step(grads)

    def step(engine):
        opt, _ = cases.on_rank(engine, layout, "paper", np.float64, {})
        pieces = cases.pieces_here(engine, layout)
        here = {name: local(grads[name], pieces[name]) for name in pieces}
        if how == "grad_scale":
            opt.step({name: grad * 8 for name, grad in here.items()}, 8.0)
        elif how == "accumulate":
            opt.accumulate({name: grad * 0.5 for name, grad in here.items()})
            opt.accumulate({name: grad * 1.5 for name, grad in here.items()})
            opt.step()
        else:
            for name, grad in here.items():
                if grad.size:
                    opt.measure(name, grad)
            opt.step()
        return opt.state_dict(True, gather=True)

    for state in on_ranks(3, step):
        for key, array in alone.state_dict(True).items():
            if array.dtype.kind == "f":
                scale = np.abs(array).max(initial=0)
                np.testing.assert_allclose(state[key], array, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_spikes_are_left_out_by_all(layout):
    def step(engine):
        opt, _ = cases.on_rank(engine, layout, "paper", np.float64, {"skip_above": 2.0})
        pieces = cases.pieces_here(engine, layout)
        for n in range(20):
            grads = cases.arrays(np.float64, 1)
            factor = 1e3 if n == 19 else 1.0
            report = opt.step({name: local(grads[name], pieces[name]) * factor for name in pieces})
        return report.spike, opt.t, opt.skipped

    with pytest.warns(SkippedStepWarning):
        assert on_ranks(3, step) == [(True, 22, 1)] * 3
