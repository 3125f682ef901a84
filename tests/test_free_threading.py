"""Python threads all at once: with a GIL they take turns between calls, without one they do not.

Everything here runs on any Python; the first test says whether this one has its GIL off, and the
others then show that _core may leave it off.
"""

import copy
import pickle
import sys
import sysconfig
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import adafactor_native as an
from adafactor_native import Optimizer
from arrays import normal
from optimizers import KINDS, digest_of_model

SHAPES = [(40, 30), (25,), (300, 500), (2, 5, 6)]


def model(**options):
    params = [normal(shape, np.float32, seed=i) for i, shape in enumerate(SHAPES)]
    return Optimizer(params, lr=1e-3, beta1=0.9, **options)


GRADS = [normal(shape, np.float32, seed=10 + i) for i, shape in enumerate(SHAPES)]


def all_at_once(*works):
    """Run each of the functions in a thread; they begin together, and their errors are ours."""
    ready = threading.Barrier(len(works))

    def run(work):
        ready.wait()
        work()

    with ThreadPoolExecutor(len(works)) as pool:
        for future in [pool.submit(run, work) for work in works]:
            future.result()


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python always has a GIL"
)
def test_loading_leaves_the_gil_off():
    assert not sys._is_gil_enabled()


def test_optimizers_of_their_own_that_share_gradients():
    """Every thread makes, steps, copies and drops models: all get the bits of one alone."""
    alone = model()
    for _ in range(5):
        alone.step(GRADS)
    expected = digest_of_model(alone)

    def work():
        for threads in (1, 2, 3) * 10:
            opt = model(num_threads=threads)
            for _ in range(3):
                opt.step(GRADS)
            twin = pickle.loads(pickle.dumps(opt)) if threads == 1 else copy.deepcopy(opt)
            for _ in range(2):
                twin.step(GRADS)
            assert digest_of_model(twin) == expected

    all_at_once(*[work] * 6)


@pytest.mark.parametrize("name", KINDS)
def test_one_array_in_many_threads(name):
    """An optimizer's steps, which others refuse meanwhile, are whole ones."""
    run, alone = (KINDS[name](normal((300, 200), np.float32), lr=1e-3) for _ in range(2))
    grad = normal((300, 200), np.float32, seed=1)
    taken = []

    def work():
        for _ in range(300):
            try:
                run.step(grad)
                taken.append(1)
            except RuntimeError as error:
                assert "another thread" in str(error)

    all_at_once(*[work] * 4)
    assert run.t == len(taken) > 0
    for _ in taken:
        alone.step(grad)
    assert run.digest() == alone.digest()


def test_one_model_that_others_look_at():
    """Steps in one thread; the others read, copy and save, or are refused; all stays whole."""
    opt, alone, taken = model(), model(), []

    def steps():
        for _ in range(200):
            try:
                opt.step(GRADS)
                taken.append(1)
            except RuntimeError as error:
                assert "another thread" in str(error)
                time.sleep(1e-3)

    def looks(*how):
        def work():
            for _ in range(100):
                for look in how:
                    try:
                        look()
                    except RuntimeError as error:
                        assert "another thread" in str(error)

        return work

    all_at_once(
        steps,
        looks(lambda: opt.state_dict(params=True), lambda: repr(opt)),
        looks(lambda: copy.deepcopy(opt), lambda: opt.memory),
        looks(lambda: (opt.t, opt.counts, opt.param_groups[0]["lr"]), lambda: dict(opt.state)),
    )
    for _ in taken:
        alone.step(GRADS)
    assert opt.t == len(taken)
    assert digest_of_model(opt) == digest_of_model(alone)


def test_what_is_of_the_process_is_changed_meanwhile():
    """The limit of threads and the instruction set change between steps, and no bit of them does."""
    sets, before = an._core.available_isas(), (an._core.running_isa(), an.get_num_threads())
    alone = model()
    for _ in range(40):
        alone.step(GRADS)
    expected, done = digest_of_model(alone), threading.Event()

    def steps():
        opt = model()
        for _ in range(40):
            opt.step(GRADS)
        assert digest_of_model(opt) == expected

    def changes():
        while not done.is_set():
            for threads, name in zip((1, 2, 3), sets * 3):
                an.set_num_threads(threads)
                an._core.set_isa(name)
                an.show_config(mode="dicts")

    changing = threading.Thread(target=changes)
    changing.start()
    try:
        all_at_once(*[steps] * 3)
    finally:
        done.set()
        changing.join()
        an._core.set_isa(before[0])
        an.set_num_threads(before[1])
