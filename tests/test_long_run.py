"""100,000 steps: they stay with the reference, and the process does not grow."""

import numpy as np
import pytest

from arrays import normal
from oracle import array_reference

N_STEPS = 100_000


def gradients(shape):
    """Return a thousand gradients, which come again and again."""
    return normal((1000, *shape), seed=1) * np.geomspace(1e-3, 1e3, 1000).reshape(-1, 1, 1)


@pytest.mark.soak
@pytest.mark.parametrize("dtype, bound", [(np.float64, 1e-11), (np.float32, 2e-4)])
def test_no_drift(kind, dtype, bound):
    """Of the largest param: float64 to the last digits, float32 to what its roundings add up to."""
    shape = (6, 5)
    param = normal(shape).astype(dtype)
    expected, state = param.astype(np.float64), array_reference.initial_state(shape)
    grads = gradients(shape).astype(dtype)
    hyper = {"lr": 1e-4, "beta2": 0.999, "scale_parameter": False}
    run = kind(param, **hyper)
    for t in range(N_STEPS):
        run.step(grads[t % 1000])
        expected, state = array_reference.update(expected, grads[t % 1000], state, **hyper)
    assert run.t == N_STEPS
    np.testing.assert_allclose(run.param, expected, rtol=0, atol=bound * np.abs(expected).max())
    for name in ("exp_row", "exp_col"):
        rtol = {np.float64: 1e-11, np.float32: 1e-6}[
            dtype
        ]  # squares of float32 are summed in float32
        np.testing.assert_allclose(run.state[name], getattr(state, name), rtol=rtol)


@pytest.mark.soak
def test_no_growth(python, class_name):
    """Small and large matrices on two threads; beyond the first steps, less than a MiB more."""
    script = f"""
        import numpy as np, psutil
        from optimizers import KINDS

        runs = [KINDS[{class_name!r}](np.ones(s, np.float32), lr=1e-9, num_threads=2)
                for s in ((64, 64), (90,), (600, 300))]
        grads = [np.ones_like(run.param) for run in runs]

        def steps(n):
            for _ in range(n):
                for run, grad in zip(runs, grads):
                    run.step(grad)

        steps(2000)
        before = psutil.Process().memory_info().rss
        steps({N_STEPS} // 3)
        print(psutil.Process().memory_info().rss - before)
    """
    assert int(python(script)) < 1 << 20
