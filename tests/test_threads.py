"""How many threads a step takes, and what other threads, signals and libraries may rely on."""

import gc
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import adafactor_native as an
from adafactor_native import Optimizer
from arrays import normal
from optimizers import digest_of_run

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


WITHIN_LIMITS = """
    import threading
    import time
    import adafactor_native as an, numpy as np, psutil
    from threadpoolctl import threadpool_limits

    def elsewhere():
        seen, before = [], psutil.Process().num_threads()
        thread = threading.Thread(target=lambda: seen.append(an.get_num_threads()))
        thread.start()
        thread.join()
        while psutil.Process().num_threads() > before:  # the system's thread ends after Python's
            time.sleep(0.001)
        return seen[0]

    def started(**threads):
        before = psutil.Process().num_threads()
        an.AdaFactor((1031, 517), **threads).update(np.ones((1031, 517)), np.ones((1031, 517)))
        return psutil.Process().num_threads() - before

    assert an.show_config(mode="dicts")["openmp"]["enabled"]
    print(an.get_num_threads())
    with threadpool_limits(1):
        print(an.get_num_threads(), started(), elsewhere())
    with threadpool_limits(9):
        print(an.get_num_threads())
    with threadpool_limits(1):
        print(started(num_threads=3))
        an.set_num_threads(2)
        print(an.get_num_threads())
"""


@pytest.mark.skipif(not an.show_config(mode="dicts")["openmp"]["enabled"], reason="no OpenMP")
def test_default_is_lowered_by_limits_of_the_openmp_runtime(python):
    """threadpoolctl calls omp_set_num_threads, as joblib and torch do: for the calling thread."""
    assert python(WITHIN_LIMITS, OMP_NUM_THREADS="2").split() == ["2", "1", "0", "2", "2", "2", "2"]


@pytest.mark.skipif(not an.show_config(mode="dicts")["openmp"]["enabled"], reason="no OpenMP")
def test_what_we_are_told_counts_more_than_limits_of_the_openmp_runtime(python):
    ours = {"OMP_NUM_THREADS": "2", "ADAFACTOR_NUM_THREADS": "3"}
    assert python(WITHIN_LIMITS, **ours).split() == ["3", "3", "2", "3", "3", "0", "2"]


@pytest.mark.parametrize("value", ["", "0", "-1", "abc", "1.5", "99999999999"])
def test_limit_that_is_nonsense(python, value):
    output = python(SHOW_ERROR, ADAFACTOR_NUM_THREADS=value)
    assert output.startswith("ADAFACTOR_NUM_THREADS is ")
    assert "must be a positive int" in output


@pytest.mark.parametrize("value", ["", "v9", "native", "BASELINE"])
def test_instruction_set_that_is_nonsense(python, value):
    output = python(SHOW_ERROR, ADAFACTOR_ISA=value)
    assert output.startswith(f"ADAFACTOR_ISA is {value!r}, must be one of baseline")


def test_large_steps_take_the_threads_and_small_ones_do_not(class_name, python):
    """Without this the tests of reproducibility would compare one thread with itself."""
    script = f"""
        import adafactor_native as an, numpy as np, psutil
        from optimizers import KINDS
        started = []
        for shape in ((64, 64), (5000,), (1031, 517), (3000, 700)):
            before = psutil.Process().num_threads()
            KINDS[{class_name!r}](np.ones(shape), num_threads=3).step(np.ones(shape))
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
        import adafactor_native, optimizers
        optimizers.digest_of_run(threads=2)
        print(environment() == before)
    """
    assert python(script, **waiting) == "True\n"


def test_subnormal_numbers_survive(class_name, python):
    """Neither loading the library nor a step, in any thread, flushes them to zero."""
    script = f"""
        import numpy as np
        smallest = np.full(3, 5e-324)
        from optimizers import KINDS
        print((smallest * 1.0 == 5e-324).all())

        shape = (1031, 517)
        param = np.full(shape, 1e-40, np.float32)
        run = KINDS[{class_name!r}](param, lr=0.0, scale_parameter=False, num_threads=2)
        before = param.tobytes()
        run.step(np.ones(shape, np.float32))
        print(param.tobytes() == before, (smallest * 1.0 == 5e-324).all())
    """
    assert python(script).split() == ["True"] * 3


def test_a_step_lets_other_threads_run(one_thread_at_a_time, kind):
    """The other thread, woken before the step, runs to its end before the step returns."""
    run, grad = kind(np.ones((2048, 1024)), num_threads=1), np.ones((2048, 1024))
    for _ in range(100):  # on a busy machine it may not get a processor in time
        go, finished = threading.Event(), []
        other = threading.Thread(target=lambda go=go, done=finished: go.wait() and done.append(1))
        other.start()
        go.set()
        ran_before = bool(finished)
        run.step(grad)
        ran_within = bool(finished) and not ran_before
        other.join()
        if ran_within:
            return
    pytest.fail("no other thread ran during a step")


def test_one_object_from_two_threads(kind):
    """One of them is told so; the steps that were taken are whole steps."""
    shape = (1024, 1024)
    run, grad = kind(normal(shape, np.float32)), normal(shape, np.float32, 1)
    alone = kind(run.param.copy())
    refused = threading.Event()

    def steps():
        taken = 0
        for _ in range(1000):
            if refused.is_set():
                break
            try:
                run.step(grad)
                taken += 1
            except RuntimeError as error:
                assert "is being updated by another thread" in str(error)
                refused.set()
        return taken

    with ThreadPoolExecutor(2) as pool:
        taken = sum(future.result() for future in [pool.submit(steps) for _ in range(2)])

    assert refused.is_set()
    assert run.t == taken
    for _ in range(taken):
        alone.step(grad)
    assert alone.digest() == run.digest()
    run.step(grad)
    assert run.t == taken + 1


def large_params():
    return [normal((700, 900), np.float32, seed=i) for i in range(12)]


def test_one_model_from_two_threads():
    """One of two threads is refused sooner or later; the steps are those of one thread."""
    grads = [normal((700, 900), np.float32, seed=100 + i) for i in range(12)]
    opt = Optimizer(large_params(), convention="numpy")
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
    alone = Optimizer(large_params(), convention="numpy")
    for _ in range(opt.t):
        alone.step(grads)
    for name, param in opt.params.items():
        assert param.tobytes() == alone.params[name].tobytes()


def test_gradients_taken_away_during_a_step():
    """Another thread empties the list, and with it the last references, while the step runs."""
    opt = Optimizer(large_params(), convention="numpy")
    drawn = [normal((700, 900), np.float32, seed=100 + i) for i in range(12)]
    for _ in range(10):
        grads = [grad.copy() for grad in drawn]
        thief = threading.Thread(target=grads.clear)
        thief.start()
        if len(grads) == len(drawn):
            try:
                opt.step(grads)
            except ValueError:
                assert not grads  # it was quicker
        thief.join()
        gc.collect()
    assert all(np.isfinite(param).all() for param in opt.params.values())


def test_objects_of_their_own_in_many_threads(class_name):
    expected = digest_of_run()
    with ThreadPoolExecutor(4) as pool:
        digests = pool.map(lambda n: digest_of_run(n, class_name), [1, 2, 3, None] * 3)
        assert set(digests) == {expected}


def test_interrupted_steps_are_whole_steps(kind):
    """Ctrl-C in a loop of steps: the parameters, the state and t are those of one same step."""

    class Interrupt(Exception):
        pass

    def interrupt(signum, frame):
        raise Interrupt

    shape = (60, 70)
    # However many steps there are time for, param stays finite.
    run, alone = (kind(normal(shape), lr=1e-5) for _ in range(2))
    grad = normal(shape, seed=1)
    rng = np.random.default_rng(0)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 5e-4))
                while True:
                    run.step(grad)
            except Interrupt:
                pass
            while alone.t < run.t:
                alone.step(grad)
            assert run.digest() == alone.digest()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_state_is_of_one_step():
    """state_dict beside steps in another thread is refused or whole, never of two steps."""
    shape = (700, 900)
    params = {name: np.ones(shape, np.float32) for name in "abc"}
    grads = {name: np.ones(shape, np.float32) for name in "abc"}
    opt = an.Optimizer(params, lr=1e-3, beta1=0.9, scale_parameter=False)
    done = threading.Event()
    torn, refused, whole = [], 0, 0

    def steps():
        for _ in range(60):
            try:
                opt.step(grads)
            except RuntimeError:
                continue  # a state is being copied
        done.set()

    thread = threading.Thread(target=steps)
    thread.start()
    while not done.is_set():
        try:
            state = opt.state_dict(params=True)
        except RuntimeError as error:
            assert "another thread" in str(error)
            refused += 1
            continue
        whole += 1
        if any(
            len(np.unique(state[f"{kind}/{name}"])) != 1
            for kind in ("param", "m")
            for name in "abc"
        ) or any(not np.array_equal(state["param/a"], state[f"param/{name}"]) for name in "bc"):
            torn.append(state)
    thread.join()
    assert not torn
    assert refused + whole > 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads the size of a process from /proc")
def test_threads_that_the_system_refuses(class_name, python):
    """A step goes on with those that there are: no room is left for another thread's stack."""
    script = f"""
        import re, resource
        import numpy as np
        from optimizers import KINDS, digest_of_run

        run = KINDS[{class_name!r}]
        print(digest_of_run(1, {class_name!r}) == digest_of_run(1, {class_name!r}))
        grad = np.ones((3000, 700), np.float32)
        narrow, wide = (run(np.ones_like(grad), num_threads=threads) for threads in (1, 8))
        narrow.step(grad)
        kib = int(re.search(r"VmSize:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (kib * 1024 + (6 << 20), before[1]))
        wide.step(grad)
        resource.setrlimit(resource.RLIMIT_AS, before)
        print(narrow.digest() == wide.digest())
    """
    assert python(script) == "True\nTrue\n"
