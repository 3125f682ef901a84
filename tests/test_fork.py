"""Children of a process that has stepped with several threads: they step too, with the same bits.

Every child has a deadline, after which the system ends it. What a fork in a process with threads
is warned of (Python 3.12 and later) is the subject here.
"""

import pytest

FORK = """
    import functools, os, signal, threading
    import optimizers
    digest_of_run = functools.partial(optimizers.digest_of_run, kind={kind!r})

    def digest_in_child():
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)
            os.write(writing, digest_of_run(2).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            digest = pipe.read()
        _, status = os.waitpid(pid, 0)
        return digest if status == 0 else f"child ended with {{status}}"

    def in_thread(work):
        results = []
        thread = threading.Thread(target=lambda: results.append(work()))
        thread.start()
        thread.join()
        return results[0]
"""


IGNORED = {"PYTHONWARNINGS": "ignore::DeprecationWarning"}


def assert_all_the_same(output, n):
    digests = output.split()
    assert len(digests) == n
    assert len(set(digests)) == 1, digests


def test_child_of_a_process_that_has_stepped(python, class_name):
    """And the parent goes on with its threads."""
    script = """
    print(digest_of_run(2))
    print(digest_in_child())
    print(digest_of_run(2))
    print(digest_in_child())
    """
    assert_all_the_same(python(FORK.format(kind=class_name) + script, **IGNORED), 4)


def test_child_of_a_process_that_has_not(python, class_name):
    script = """
    print(digest_in_child())
    print(digest_of_run(2))
    """
    assert_all_the_same(python(FORK.format(kind=class_name) + script, **IGNORED), 2)


def test_child_of_another_thread(python, class_name):
    """The fork in a thread, after a step there or in the main thread or in both."""
    script = """
    print(in_thread(digest_in_child))
    print(in_thread(lambda: digest_of_run(2)))
    print(digest_in_child())
    print(in_thread(lambda: [digest_of_run(2), digest_in_child()][1]))
    print(digest_of_run(2))
    print(in_thread(digest_in_child))
    """
    assert_all_the_same(python(FORK.format(kind=class_name) + script, **IGNORED), 6)


def test_child_born_while_another_thread_steps(python, class_name):
    script = """
    expected = digest_of_run(2)
    stop = threading.Event()
    def steps():
        while not stop.is_set():
            digest_of_run(2)
    busy = threading.Thread(target=steps)
    busy.start()
    digests = [digest_in_child() for _ in range(8)]
    stop.set()
    busy.join()
    print(expected, *digests)
    """
    assert_all_the_same(python(FORK.format(kind=class_name) + script, **IGNORED), 9)


def test_child_of_a_child(python, class_name):
    script = """
    print(digest_of_run(2), flush=True)
    if os.fork() == 0:
        signal.alarm(30)
        print(digest_of_run(2))
        print(digest_in_child(), flush=True)
        os._exit(0)
    print("child ended with", os.wait()[1])
    """
    *digests, end = python(FORK.format(kind=class_name) + script, **IGNORED).splitlines()
    assert end == "child ended with 0"
    assert_all_the_same("\n".join(digests), 3)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("where", ["main", "worker"])
def test_multiprocessing(python, method, where, class_name):
    """The pool is the main thread's, or that of a thread that has stepped, as others have."""
    script = f"""
        import multiprocessing, threading
        from optimizers import digest_of_run

        def work():
            print(digest_of_run(2))
            with multiprocessing.get_context("{method}").Pool(2) as pool:
                runs = [(n, {class_name!r}) for n in (1, 2, 3, 2)]
                print(*pool.starmap_async(digest_of_run, runs).get(timeout=100))

        if "{where}" == "main":
            work()
        else:
            digest_of_run(2)
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
    """
    assert_all_the_same(python(script, **IGNORED), 5)


def test_forked_in_the_middle_of_a_step(python):
    """The child says so, once and for all until a state is loaded; then it steps."""
    script = """
    import os, signal, threading
    import numpy as np
    from adafactor_native import AdaFactor, Optimizer

    def says(work):
        try:
            work()
        except RuntimeError as error:
            return "forked while" in str(error)
        return False

    param = np.ones((4000, 3000), np.float32)
    grad = param.copy()
    one, model = AdaFactor(param.shape), Optimizer({"w": param})
    saved = one.state_dict(), model.state_dict()

    def in_child():
        small = np.ones((4000, 3000), np.float32)
        for opt, step, state in (
            (one, lambda: one.update(small, grad), saved[0]),
            (model, lambda: model.step([grad]), saved[1]),
        ):
            if not (says(step) and says(step) and says(opt.state_dict)):
                return 1
            opt.load_state_dict(state)
            if opt.t != 0:
                return 2
            step()
            if opt.t != 1:
                return 3
        return 0

    stop = False
    def steps(step):
        while not stop:
            step()

    threads = [
        threading.Thread(target=steps, args=[lambda: one.update(np.ones_like(grad), grad)]),
        threading.Thread(target=steps, args=[lambda: model.step([grad])]),
    ]
    for thread in threads:
        thread.start()
    # Both must be in a step when the process forks: tried until they are.
    for _ in range(1000):
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)
            busy = says(one.state_dict) and says(model.state_dict)
            os._exit(in_child() if busy else 100)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status != 100:
            break
    stop = True
    for thread in threads:
        thread.join()
    print("child ended with", status)
    """
    assert python(script, **IGNORED).split() == ["child", "ended", "with", "0"]


def test_child_steps_a_model_with_the_same_bits(python):
    script = """
        import os, signal
        import numpy as np
        from adafactor_native import Optimizer
        from arrays import normal
        from optimizers import digest_of_model

        def digest():
            params = [normal((300, 900), np.float32, seed=i) for i in range(6)]
            opt = Optimizer(params, convention="numpy", num_threads=2)
            opt.step([normal((300, 900), np.float32, seed=10 + i) for i in range(6)])
            return digest_of_model(opt)

        print(digest(), flush=True)
        if os.fork() == 0:
            signal.alarm(30)
            print(digest(), flush=True)
            os._exit(0)
        _, status = os.wait()
        assert status == 0, status
    """
    assert_all_the_same(python(script, **IGNORED), 2)
