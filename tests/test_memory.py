"""What a step needs beside its arrays: very little, and nothing that stays."""

import contextlib
import gc
import sys
import weakref

import numpy as np
import pytest

from adafactor_native import Optimizer
from arrays import normal
from oracle.halves_reference import bfloat16

MIB = 1 << 20


# Arrays are made and touched without temporaries, so that the peak is theirs until the step.
PEAK = """
    import numpy as np
    from optimizers import KINDS

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
def test_peak_of_a_step(
    python, class_name, param_dtype, grad_dtype, param_layout, grad_layout, eps
):
    """The first step of a process, threads and all; a copy of one array would be 64 MiB."""
    step = f"""
    param, grad = ones("{param_dtype}", "{param_layout}"), ones("{grad_dtype}", "{grad_layout}")
    run = KINDS[{class_name!r}](param, eps={eps}, num_threads=2)
    before = peak()
    run.step(grad)
    print(peak() - before)
    """
    assert int(python(PEAK + step)) < 4 * MIB


@pytest.mark.parametrize("shape", [(1 << 24,), (64, 512, 512), (1, 1 << 24), (1 << 22, 4)], ids=str)
def test_peak_of_a_step_of_other_shapes(python, class_name, shape):
    """A matrix that is long in one axis takes a few numbers for each of its rows and columns."""
    step = f"""
    param, grad = np.ones({shape}, "f4"), np.ones({shape}, "f4")
    run = KINDS[{class_name!r}](param, num_threads=2)
    for state in run.state.values():
        state += 1
    before = peak()
    run.step(grad)
    print(peak() - before)
    """
    lines = sum(shape) if len(shape) == 2 else 0
    assert int(python(PEAK + step)) < 4 * MIB + 8 * 8 * lines


def test_nothing_grows_over_many_steps(python, class_name):
    """Steps, refused steps, new optimizers, new threads: the resident set stays where it is."""
    script = f"""
        import threading
        import numpy as np, psutil
        from optimizers import KINDS

        kind, shape = KINDS[{class_name!r}], (64, 64)
        bad = np.full(shape, np.nan)
        run, grad = kind(np.ones(shape)), np.ones(shape)

        def work(times):
            for _ in range(times):
                run.step(grad)
                kind(run.param.copy()).step(grad.T)
                for wrong in (bad, grad[:3], "grad"):
                    try:
                        run.step(wrong)
                    except (FloatingPointError, ValueError, TypeError):
                        pass
                thread = threading.Thread(target=run.step, args=(grad,))
                thread.start()
                thread.join()

        work(300)
        before = psutil.Process().memory_info().rss
        work(2000)
        print(psutil.Process().memory_info().rss - before)
    """
    assert int(python(script)) < MIB


@pytest.mark.parametrize("bad", [1.0, np.nan])
def test_arrays_are_let_go(bad, kind):
    run, grad = kind(normal((5, 9))), normal((5, 9), seed=1)
    run.step(grad)
    grad[2, 3] = bad
    arrays = [run.param, grad, *run.state.values()]
    counts = [sys.getrefcount(x) for x in arrays]
    for _ in range(10):
        with contextlib.suppress(FloatingPointError):
            run.step(grad)
    assert [sys.getrefcount(x) for x in arrays] == counts


def test_arrays_of_a_model_are_let_go():
    params = {"w": normal((5, 9)), "b": normal(9), "k": normal((20, 3, 3))}
    grads = {name: normal(param.shape, seed=1) for name, param in params.items()}
    opt = Optimizer(params, convention="numpy", beta1=0.9, factored_axes="last_two")
    opt.step(grads)
    arrays = [*params.values(), *grads.values()]
    counts = [sys.getrefcount(array) for array in arrays]
    for bad in (1.0, np.nan) * 5:
        grads["w"][2, 3] = bad
        try:
            opt.step(grads)
        except FloatingPointError:
            assert bad != 1.0
    assert [sys.getrefcount(array) for array in arrays] == counts
    state = [weakref.ref(array) for array in opt.state["k"].values()]
    del opt
    gc.collect()
    assert [ref() for ref in state] == [None] * 3


@pytest.mark.parametrize("atomic", ["all", "tensor"])
def test_peak_of_a_step_of_a_model(python, atomic):
    """Beside params, gradients and state: the numbers of rows and columns, not those of elements."""
    script = f"""
        import numpy as np
        from adafactor_native import Optimizer

        def peak():
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) * 1024 for line in status if line[:5] == "VmHWM")

        shapes = [(50000, 256)] + [(1024, 1024), (1024,)] * 16 + [(256, 128, 3, 3)] * 4
        params = [np.ones(shape, np.float32) for shape in shapes]
        grads = [np.ones(shape, np.float32) for shape in shapes]
        opt = Optimizer(params, convention="huggingface", atomic={atomic!r}, num_threads=2)
        for state in opt.state.values():
            for array in state.values():
                array += 1  # makes the system give its pages, which are zeros until then
        before = peak()
        opt.step(grads)
        print(peak() - before)
    """
    lines = 50000 + 256 + 16 * 2048
    assert int(python(script)) < 8 * MIB + 8 * 8 * lines


def test_memory_of_the_state_is_what_is_kept():
    shape = (64, 96)
    n = 64 * 96
    factors = (64 + 96) * 8
    for options, bytes_kept in [
        ({}, factors),
        ({"masters": "float32"}, factors + 4 * n),
        ({"masters": "split"}, factors + 2 * n),
        ({"beta1": 0.9}, factors + 4 * n),
        ({"beta1": 0.9, "momentum_dtype": "bfloat16"}, factors + 2 * n),
    ]:
        assert (
            Optimizer([np.ones(shape, bfloat16)], convention="numpy", **options).memory.total
            == bytes_kept
        )
