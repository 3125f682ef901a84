"""How many threads a step takes, and what other threads, signals and libraries may rely on."""

import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import adafactor_native as an
from problems import digest, digest_of_run, normal

SHOW_LIMIT = """
    import adafactor_native as an
    print(an.get_num_threads())
"""
SHOW_ERROR = """
    try:
        import adafactor_native
    except ValueError as error:
        print(error)
"""


@pytest.fixture
def limit():
    """The limit at the start, which the test may change."""
    before = an.get_num_threads()
    yield before
    an.set_num_threads(before)


@pytest.fixture
def one_thread_at_a_time():
    """No Python thread takes the interpreter from another: it must be let go."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e6)
    yield
    sys.setswitchinterval(before)


def test_limit_is_what_was_set(limit):
    for n in (1, 2, 7, np.int64(3)):
        an.set_num_threads(n)
        assert an.get_num_threads() == n
        assert an.AdaFactor((3,)).num_threads is None


@pytest.mark.parametrize("value", [0, -1, 2**31])
def test_limit_out_of_range(limit, value):
    with pytest.raises(ValueError, match=f"^num_threads is {value}, must be a positive int$"):
        an.set_num_threads(value)
    assert an.get_num_threads() == limit


@pytest.mark.parametrize("value", [None, 1.0, "2"])
def test_limit_of_the_wrong_type(limit, value):
    text = f"^num_threads is an? {type(value).__name__}, must be a positive int$"
    with pytest.raises(TypeError, match=text):
        an.set_num_threads(value)
    assert an.get_num_threads() == limit


def test_limit_from_the_environment(python):
    assert python(SHOW_LIMIT, ADAFACTOR_NUM_THREADS="5") == "5\n"
    assert python(SHOW_LIMIT, OMP_NUM_THREADS="3") == "3\n"
    assert python(SHOW_LIMIT, OMP_NUM_THREADS="3,2") == "3\n"
    assert python(SHOW_LIMIT, ADAFACTOR_NUM_THREADS="5", OMP_NUM_THREADS="3") == "5\n"


def test_limit_from_the_affinity(python):
    pinned = """
        import os
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        import adafactor_native as an
        print(an.get_num_threads())
    """
    assert python(pinned) == "1\n"
    assert python(pinned, ADAFACTOR_NUM_THREADS="4") == "4\n"
    assert 1 <= int(python(SHOW_LIMIT)) <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize("value", ["", "0", "-1", "abc", "1.5", "99999999999"])
def test_limit_that_is_nonsense(python, value):
    output = python(SHOW_ERROR, ADAFACTOR_NUM_THREADS=value)
    assert output.startswith("ADAFACTOR_NUM_THREADS is ")
    assert "must be a positive int" in output


@pytest.mark.parametrize("value", ["", "v9", "native", "BASELINE"])
def test_instruction_set_that_is_nonsense(python, value):
    output = python(SHOW_ERROR, ADAFACTOR_ISA=value)
    assert output.startswith(f"ADAFACTOR_ISA is {value!r}, must be one of baseline")


def test_large_steps_take_the_threads_and_small_ones_do_not(python):
    """Without this the tests of reproducibility would compare one thread with itself."""
    script = """
        import adafactor_native as an, numpy as np, psutil
        started = []
        for shape in ((64, 64), (5000,), (1031, 517), (3000, 700)):
            before = psutil.Process().num_threads()
            problem = np.ones(shape), np.ones(shape)
            an.AdaFactor(shape, num_threads=3).update(*problem)
            started.append(psutil.Process().num_threads() - before)
        print(started if an.show_config(mode="dicts")["openmp"]["enabled"] else "no OpenMP")
    """
    assert python(script) in ("[0, 0, 2, 0]\n", "no OpenMP\n")


@pytest.mark.parametrize("waiting", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "9"}])
def test_import_leaves_the_environment_as_it_was(python, waiting):
    """Python's and C's: the waiting policy is chosen, and not left behind."""
    script = """
        import ctypes, os
        def environment():
            entries = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
            return set(iter(iter(entries).__next__, None)), dict(os.environ)
        before = environment()
        import adafactor_native, problems
        problems.digest_of_run(threads=2)
        print(environment() == before)
    """
    assert python(script, **waiting) == "True\n"


def test_subnormal_numbers_survive(python):
    """Neither loading the library nor a step, in any thread, flushes them to zero."""
    script = """
        import numpy as np
        smallest = np.full(3, 5e-324)
        import adafactor_native as an
        print((smallest * 1.0 == 5e-324).all())

        shape = (1031, 517)
        opt = an.AdaFactor(shape, lr=0.0, scale_parameter=False, num_threads=2)
        param = np.full(shape, 1e-40, np.float32)
        before = param.tobytes()
        opt.update(param, np.ones(shape, np.float32))
        print(param.tobytes() == before, (smallest * 1.0 == 5e-324).all())
    """
    assert python(script).split() == ["True"] * 3


def test_a_step_lets_other_threads_run(one_thread_at_a_time):
    """The other thread, woken before the step, runs to its end before the step returns."""
    opt = an.AdaFactor((2048, 1024), num_threads=1)
    param, grad = np.ones(opt.shape), np.ones(opt.shape)
    for _ in range(100):  # on a busy machine it may not get a processor in time
        go, finished = threading.Event(), []
        other = threading.Thread(target=lambda go=go, done=finished: go.wait() and done.append(1))
        other.start()
        go.set()
        ran_before = bool(finished)
        opt.update(param, grad)
        ran_within = bool(finished) and not ran_before
        other.join()
        if ran_within:
            return
    pytest.fail("no other thread ran during a step")


def test_one_object_from_two_threads():
    """One of them is told so; the steps that were taken are whole steps."""
    shape = (1024, 1024)
    opt, param, grad = an.AdaFactor(shape), normal(shape, np.float32), normal(shape, np.float32, 1)
    start = param.copy()
    refused = threading.Event()

    def steps():
        taken = 0
        for _ in range(1000):
            if refused.is_set():
                break
            try:
                opt.update(param, grad)
                taken += 1
            except RuntimeError as error:
                assert "another thread" in str(error)
                refused.set()
        return taken

    with ThreadPoolExecutor(2) as pool:
        taken = sum(future.result() for future in [pool.submit(steps) for _ in range(2)])

    assert refused.is_set()
    assert opt.t == taken
    alone = an.AdaFactor(shape)
    for _ in range(taken):
        alone.update(start, grad)
    assert digest(alone, start) == digest(opt, param)
    opt.update(param, grad)
    assert opt.t == taken + 1


def test_objects_of_their_own_in_many_threads():
    expected = digest_of_run()
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(digest_of_run, [1, 2, 3, None] * 3)) == {expected}


def test_interrupted_steps_are_whole_steps():
    """Ctrl-C in a loop of steps: the parameters, the state and t are those of one same step."""

    class Interrupt(Exception):
        pass

    def interrupt(signum, frame):
        raise Interrupt

    shape = (60, 70)
    param, grad = normal(shape), normal(shape, seed=1)
    lr = 1e-4  # param grows by as much in each of tens of thousands of steps, and must stay finite
    opt = an.AdaFactor(shape, lr)
    alone, same = an.AdaFactor(shape, lr), param.copy()
    rng = np.random.default_rng(0)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 5e-4))
                while True:
                    opt.update(param, grad)
            except Interrupt:
                pass
            while alone.t < opt.t:
                alone.update(same, grad)
            assert digest(opt, param) == digest(alone, same)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
