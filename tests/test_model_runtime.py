"""Whole models among threads, forks and other owners of their arrays; what a step borrows."""

import gc
import sys
import threading
import weakref

import numpy as np
import pytest

from adafactor_native import Optimizer
from problems import normal

MIB = 1 << 20


def large_model():
    return {f"w{i}": normal((700, 900), np.float32, seed=i) for i in range(12)}


def gradients(seed=100):
    return {f"w{i}": normal((700, 900), np.float32, seed=seed + i) for i in range(12)}


def test_a_second_thread_is_told_so_and_changes_nothing():
    """One of two threads is refused sooner or later; the others' steps are those of one thread."""
    params, grads = large_model(), gradients()
    opt = Optimizer(params, "numpy")
    refused, start = [], threading.Barrier(2)

    def work():
        start.wait()
        for _ in range(15):
            try:
                opt.step(grads)
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused and set(refused) == {"this optimizer is being updated by another thread"}
    assert opt.t == 30 - len(refused)
    expected = large_model()
    alone = Optimizer(expected, "numpy")
    for _ in range(opt.t):
        alone.step(grads)
    for name, param in params.items():
        assert param.tobytes() == expected[name].tobytes()


def test_gradients_taken_away_during_a_step():
    """Another thread empties the list, and with it the last references, while the step runs."""
    params = large_model()
    opt = Optimizer(list(params.values()), "numpy")
    for turn in range(10):
        grads = list(gradients(100 * turn).values())
        thief = threading.Thread(target=grads.clear)
        thief.start()
        if len(grads) == len(params):
            try:
                opt.step(grads)
            except ValueError:
                assert not grads  # it was quicker
        thief.join()
        gc.collect()
    assert all(np.isfinite(param).all() for param in params.values())


@pytest.mark.parametrize(
    "change",
    [
        lambda param: setattr(param, "shape", (4, 6)),
        lambda param: setattr(param, "dtype", np.int32),
        lambda param: param.resize((2, 6), refcheck=False),
    ],
    ids=["shape", "dtype", "memory"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_param_that_became_another_array(change):
    params = {"a": np.ones((3, 4), np.float32), "b": np.ones((6, 4), np.float32)}
    opt = Optimizer(params, "numpy")
    change(params["b"])
    before = [param.copy() for param in params.values()]
    with pytest.raises((ValueError, TypeError), match=r"^params\['b'\] has "):
        opt.step({"a": np.ones((3, 4)), "b": np.ones((6, 4))})
    assert opt.t == 0
    for param, old in zip(params.values(), before):
        assert param.tobytes() == old.tobytes()


def test_a_param_that_became_read_only():
    params = {"a": np.ones((3, 4)), "b": np.ones(4)}
    opt = Optimizer(params, "numpy")
    params["b"].flags.writeable = False
    with pytest.raises(ValueError, match=r"^params\['b'\] is read-only, must be writeable$"):
        opt.step({"a": np.ones((3, 4)), "b": np.ones(4)})
    assert (params["a"] == 1).all()


def test_interleaved_params_and_gradients_are_no_overlap():
    whole = normal((40, 30), np.float32)
    params = {"even": whole[:, ::2], "odd": whole[:, 1::2]}
    expected = {name: param.copy() for name, param in params.items()}
    grads = {"even": normal((40, 15), seed=1), "odd": normal((40, 15), seed=2)}
    Optimizer(params, "numpy").step(grads)
    Optimizer(expected, "numpy").step(grads)
    for name, param in params.items():
        np.testing.assert_array_equal(param, expected[name])
    with pytest.raises(ValueError, match=r"^grads\['odd'\] overlaps params\['even'\], must not"):
        Optimizer(params, "numpy").step({"even": grads["even"], "odd": whole[:, ::2]})


def test_arrays_are_let_go():
    params = {"w": normal((5, 9)), "b": normal(9), "k": normal((20, 3, 3))}
    grads = {name: normal(param.shape, seed=1) for name, param in params.items()}
    opt = Optimizer(params, "numpy", beta1=0.9, factored_axes="last_two")
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


def test_a_child_of_fork_steps_with_the_same_bits(python):
    script = """
        import hashlib, os, signal
        import numpy as np
        from adafactor_native import Optimizer
        from problems import normal

        def digest():
            params = [normal((300, 900), np.float32, seed=i) for i in range(6)]
            opt = Optimizer(params, num_threads=2)
            opt.step([normal((300, 900), np.float32, seed=10 + i) for i in range(6)])
            return hashlib.sha256(b"".join(param.tobytes() for param in params)).hexdigest()

        print(digest(), flush=True)
        if os.fork() == 0:
            signal.alarm(30)
            print(digest(), flush=True)
            os._exit(0)
        _, status = os.wait()
        assert status == 0, status
    """
    first, second = python(script, PYTHONWARNINGS="ignore::DeprecationWarning").split()
    assert first == second


@pytest.mark.parametrize("atomic", ["all", "tensor"])
def test_peak_of_a_step(python, atomic):
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
