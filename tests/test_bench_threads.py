"""How a matrix is cut into tasks, and what bench/simulated_threads.py makes of them."""

import pytest

import simulated_threads
from adafactor_native._runtime import _core

MACHINE = simulated_threads.Machine(
    core_bytes_per_ns=40, socket_bytes_per_ns=1e9, region_ns=0, per_thread_ns=0, line_ns=0
)


@pytest.mark.parametrize(
    ("shape", "of_grad", "of_apply"),
    [
        ((4096, 4096), 32, 256),
        ((8192, 4096), 32, 512),
        ((50257, 768), 61, 592),
        ((768, 3072), 6, 37),
        ((1024, 1024), 8, 16),
        ((64, 64), 1, 1),
    ],
)
def test_matrix_is_cut_by_its_shape_alone(shape, of_grad, of_apply):
    """Not by threads, of which bits would depend; a change here changes bits, or balance."""
    assert _core.task_counts(*shape) == (of_grad, of_apply)


@pytest.mark.parametrize("measures_param", [True, False])
def test_no_byte_is_lost_in_the_cut(measures_param):
    tasks = simulated_threads.measure_tasks((50257, 768), measures_param)
    assert sum(tasks) == pytest.approx(50257 * 768 * 4 * (2 if measures_param else 1))
    assert sum(simulated_threads.apply_tasks((50257, 768))) == pytest.approx(50257 * 768 * 12)


def test_apply_has_four_tasks_for_each_of_64_threads():
    assert _core.task_counts(4096, 4096)[1] >= 4 * 64


@pytest.mark.parametrize(("threads", "share"), [(1, 1), (2, 1 / 2), (4, 1 / 4), (5, 1 / 4)])
def test_sweep_of_four_equal_tasks(threads, share):
    """A fifth thread has nothing to do."""
    sweep = simulated_threads.Sweep([4e6] * 4)
    assert sweep.ns(threads, MACHINE) == pytest.approx(4 * 4e6 / 40 * share, rel=1e-2)


def test_thread_that_is_done_takes_from_others():
    sweep = simulated_threads.Sweep([4e6, 1e6, 1e6, 1e6, 1e6, 0.1, 0.1, 0.1])
    assert sweep.ns(2, MACHINE) == pytest.approx(4e6 / 40, rel=1e-2)


def test_threads_share_the_memory():
    narrow = simulated_threads.Machine(40, 80, 0, 0, 0)
    sweep = simulated_threads.Sweep([1e6] * 64)
    assert sweep.ns(64, narrow) == pytest.approx(64e6 / 80, rel=1e-2)


def test_small_tensors_share_a_wave():
    waves = simulated_threads.waves([(768,), (768, 3072), (3072,), (768,)])
    assert [len(wave) for wave in waves] == [1, 1, 2]
