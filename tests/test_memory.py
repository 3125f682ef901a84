"""What a step needs beside its arrays: very little, and nothing that stays."""

import contextlib
import sys

import numpy as np
import pytest

import adafactor_native as an
from problems import normal

MIB = 1 << 20

# Arrays are made and touched without temporaries, so that the peak is theirs until the step.
PEAK = """
    import adafactor_native as an, numpy as np

    def peak():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line[:5] == "VmHWM")

    def ones(dtype, layout):
        return {
            "C": lambda: np.ones((4096, 4096), dtype),
            "Fortran": lambda: np.ones((4096, 4096), dtype).T,
            "column slice": lambda: np.ones((4096, 4200), dtype)[:, 7:4103],
            "steps": lambda: np.ones((4096, 8192), dtype)[::-1, ::2],
        }[layout]()
"""


@pytest.mark.parametrize("eps", [1e-30, 1e-3])
@pytest.mark.parametrize(
    "param_dtype, grad_dtype, param_layout, grad_layout",
    [
        ("f4", "f4", "C", "C"),
        ("f8", "f8", "C", "C"),
        ("f4", "f8", "C", "C"),
        ("f4", "f4", "Fortran", "Fortran"),
        ("f4", "f4", "C", "Fortran"),
        ("f4", "f4", "column slice", "column slice"),
        ("f4", "f4", "steps", "steps"),
    ],
)
def test_peak_of_a_step(python, param_dtype, grad_dtype, param_layout, grad_layout, eps):
    """The first step of a process, threads and all; a copy of one array would be 64 MiB."""
    step = f"""
    param, grad = ones("{param_dtype}", "{param_layout}"), ones("{grad_dtype}", "{grad_layout}")
    opt = an.AdaFactor((4096, 4096), eps={eps}, num_threads=2)
    before = peak()
    opt.update(param, grad)
    print(peak() - before)
    """
    assert int(python(PEAK + step)) < 4 * MIB


@pytest.mark.parametrize("shape", [(1 << 24,), (64, 512, 512), (1, 1 << 24), (1 << 22, 4)], ids=str)
def test_peak_of_a_step_of_other_shapes(python, shape):
    """A matrix that is long in one axis takes a few numbers for each of its rows and columns."""
    step = f"""
    param, grad = np.ones({shape}, "f4"), np.ones({shape}, "f4")
    opt = an.AdaFactor({shape}, num_threads=2)
    for state in (opt.exp_row, opt.exp_col, opt.v):
        if state is not None:
            state += 1
    before = peak()
    opt.update(param, grad)
    print(peak() - before)
    """
    lines = sum(shape) if len(shape) == 2 else 0
    assert int(python(PEAK + step)) < 4 * MIB + 8 * 8 * lines


def test_nothing_grows_over_many_steps(python):
    """Steps, refused steps, new optimizers, new threads: the resident set stays where it is."""
    script = """
        import threading
        import adafactor_native as an, numpy as np, psutil

        shape = (64, 64)
        bad = np.full(shape, np.nan)
        kept = an.AdaFactor(shape), np.ones(shape), np.ones(shape)

        def work(times):
            for _ in range(times):
                opt, param, grad = kept
                opt.update(param, grad)
                an.AdaFactor(shape).update(param, grad.T)
                for wrong in (bad, grad[:3], "grad"):
                    try:
                        opt.update(param, wrong)
                    except (FloatingPointError, ValueError, TypeError):
                        pass
                thread = threading.Thread(target=opt.update, args=(param, grad))
                thread.start()
                thread.join()

        work(300)
        before = psutil.Process().memory_info().rss
        work(2000)
        print(psutil.Process().memory_info().rss - before)
    """
    assert int(python(script)) < MIB


@pytest.mark.parametrize("bad", [1.0, np.nan])
def test_arrays_are_let_go(bad):
    opt, param, grad = an.AdaFactor((5, 9)), normal((5, 9)), normal((5, 9), seed=1)
    opt.update(param, grad)
    grad[2, 3] = bad
    arrays = [param, grad, opt.exp_row, opt.exp_col]
    counts = [sys.getrefcount(x) for x in arrays]
    for _ in range(10):
        with contextlib.suppress(FloatingPointError):
            opt.update(param, grad)
    assert [sys.getrefcount(x) for x in arrays] == counts
