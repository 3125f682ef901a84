"""The formulas by layout against the reference of one process, which knows no ranks."""

from __future__ import annotations

import numpy as np
import pytest

from oracle import sharded_reference, switches_reference

SHAPE = (7, 5)


def cut(layout, n_ranks):
    """Return where each rank's part is; the last rank's may be empty."""
    n_rows, n_cols = SHAPE
    edges = {
        n: np.linspace(0, n, n_ranks + 1).astype(int) for n in (n_rows, n_cols, n_rows * n_cols)
    }
    parts = {n: [slice(i, j) for i, j in zip(at, at[1:])] for n, at in edges.items()}
    if layout == "rows":
        return [(part, slice(None)) for part in parts[n_rows]]
    if layout == "cols":
        return [(slice(None), part) for part in parts[n_cols]]
    if layout == "boxes":
        return [(i, j) for i in (slice(0, 3), slice(3, 7)) for j in parts[n_cols]]
    return parts[n_rows * n_cols]


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4, 9])
@pytest.mark.parametrize(
    ("layout", "n_exchanges"), [("rows", 1), ("cols", 1), ("boxes", 2), ("flat", 2)]
)
def test_every_layout_is_the_step_of_one_process(layout, n_exchanges, n_ranks):
    rng = np.random.default_rng(n_ranks)
    param = rng.standard_normal(SHAPE)
    grad = rng.standard_normal(SHAPE) * np.geomspace(1, 1e4, SHAPE[0])[:, None]
    exp_row, exp_col = rng.random(SHAPE[0]) + 0.1, rng.random(SHAPE[1]) + 0.1
    places = cut(layout, n_ranks)
    lines = (lambda x: x.reshape(-1)) if layout == "flat" else (lambda x: x)
    matrix = sharded_reference.Matrix(
        *SHAPE,
        [lines(grad)[at] for at in places],
        [lines(param)[at] for at in places],
        places,
        exp_row,
        exp_col,
    )

    params, _ = getattr(sharded_reference, layout)(matrix)

    expected, _ = switches_reference.step(
        param,
        grad,
        switches_reference.State(exp_row[:, None], exp_col[None, :]),
        beta2=0.9,
        eps_mode="grad_squared",
        eps_scale=1e-3,
    )
    assert matrix.n_exchanges == n_exchanges
    for at, own in zip(places, params):
        update = lines(param)[at] - own
        np.testing.assert_allclose(
            update,
            (lines(param) - lines(expected))[at],
            rtol=0,
            atol=1e-14 * np.abs(param - expected).max(),
        )
