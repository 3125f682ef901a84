"""``sums="exact"``: one hash of params, state and reports for every layout and number of ranks."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from sharded import cases
from sharded.cuts import LAYOUTS
from sharded.thread_engine import on_ranks

SETTINGS = {
    "float64": (np.float64, {"beta1": 0.9}),
    "float32": (np.float32, {"weight_decay": 0.1}),
    "float16": (np.float16, {}),
    "stochastic": (ml_dtypes.bfloat16, {"rounding": "stochastic", "masters": None}),
    "global norm": (np.float32, {"max_grad_norm": 0.1}),
    "batches": (np.float32, {"factored_axes": "last_two", "rms_scope": "matrix"}),
    "direct eps": (np.float32, {"eps": 1e-2, "eps_mode": "both"}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_one_hash(name):
    dtype, settings = SETTINGS[name]
    settings = {**settings, "sums": "exact"}

    def digest(engine, layout):
        opt, reports = cases.on_rank(engine, layout, "paper", dtype, settings)
        return cases.digest(opt.state_dict(True, gather=True), reports)

    found = {}
    for layout in LAYOUTS:
        for ranks in (1, 2, 3, 4):
            for each in on_ranks(ranks, digest, layout):
                found.setdefault(each, []).append((layout, ranks))
    alone, reports = cases.one_process("paper", dtype, settings)
    found.setdefault(cases.digest(alone.state_dict(True), reports), []).append("one process")
    assert len(found) == 1, found


def test_it_is_the_step_of_fast_sums_to_rounding():
    alone, reports = cases.one_process("paper", np.float64, {"sums": "exact"})
    fast, expected = cases.one_process("paper", np.float64, {})
    for name in cases.SHAPES:
        np.testing.assert_allclose(alone.params[name], fast.params[name], rtol=1e-12)
    for report, other in zip(reports, expected):
        for key, numbers in cases.numbers_of(other).items():
            np.testing.assert_allclose(cases.numbers_of(report)[key], numbers, rtol=1e-12)
    assert (alone.sums, fast.sums) == ("exact", "fast")


def test_what_it_does_not_go_with():
    with pytest.raises(ValueError, match=r"^atomic is 'tensor', must be 'all' with comm and"):
        cases.one_process("paper", np.float32, {"sums": "exact", "atomic": "tensor"})
    alone, _ = cases.one_process("paper", np.float32, {"sums": "exact"})
    with pytest.raises(ValueError, match=r"is not possible with comm or sums='exact': "):
        alone.reset("w")
    with pytest.raises(ValueError, match=r"^sums is 'slow', must be 'fast' or 'exact'"):
        cases.one_process("paper", np.float32, {"sums": "slow"})
