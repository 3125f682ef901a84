"""Ctrl-C at any moment of a step, a load or a save: what is left is one whole step, state or file."""

import pytest

# The signal comes from another thread at a random moment of `work`, which begins again until then.
INTERRUPTED = """
    import os, random, signal, threading, time
    import numpy as np
    import two_groups
    from adafactor_native import Optimizer
    from optimizers import KINDS, digest_of_model

    # a process in the background of a shell is started without
    signal.signal(signal.SIGINT, signal.default_int_handler)
    drawn = random.Random({seed})
    print("seed {seed}", flush=True)

    def interrupt(work, latest):
        def send(after):
            time.sleep(after)
            os.kill(os.getpid(), signal.SIGINT)
        thread = threading.Thread(target=send, args=[drawn.uniform(1e-4, latest)])
        interrupted = False
        try:
            thread.start()
            while True:
                work()
        except KeyboardInterrupt:
            interrupted = True
        thread.join()
        return interrupted
"""


@pytest.fixture
def seed():
    """A fixed one: the moments are random all the same, on a machine that does other work."""
    return 20261126


def test_in_a_step(python, class_name, seed):
    script = f"""
    shape = (300, 500)
    rng = np.random.default_rng(0)
    param, grad = rng.standard_normal((2, *shape)).astype(np.float32)
    run, alone = (KINDS[{class_name!r}](param.copy(), lr=1e-9) for _ in range(2))
    for _ in range(100):
        assert interrupt(lambda: run.step(grad), 2e-3)
        while alone.t < run.t:
            alone.step(grad)
        assert run.digest() == alone.digest(), run.t
    print("whole" if run.t > 0 else "no step")
    """
    assert python(INTERRUPTED.format(seed=seed) + script).split()[-1] == "whole"


MODEL = """
    def model():
        rng = np.random.default_rng(1)
        params = [rng.standard_normal((60, 50)).astype(np.float32) for _ in range(12)]
        return Optimizer(params, lr=1e-3, beta1=0.9, num_threads=1)

    def step(opt):
        opt.step([np.full_like(param, 0.1 * opt.t + 0.1) for param in opt.params.values()])
"""


def test_in_a_load(python, seed):
    """The state is the one before or the one that is loaded, counts and hyper-parameters too."""
    script = """
    opt, states, digests = model(), [], set()
    for lr in (1e-3, 2e-3):
        step(opt)
        opt.param_groups[0]["lr"] = lr
        states.append(opt.state_dict(params=True))
        digests.add((digest_of_model(opt), lr))

    def work():
        for state in states:
            opt.load_state_dict(state)

    for _ in range(200):
        assert interrupt(work, 2e-3)
        assert (digest_of_model(opt), opt.param_groups[0]["lr"]) in digests
    work()
    step(opt)
    print("whole" if opt.t == 3 else opt.t)
    """
    assert python(INTERRUPTED.format(seed=seed) + MODEL + script).split()[-1] == "whole"


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_in_a_save(python, seed, suffix):
    """The file is that of one step, and no other file stays."""
    script = f"""
    opt, alone, loaded = model(), model(), model()
    path = "state{suffix}"
    opt.save(path, params=True)

    def work():
        step(opt)
        opt.save(path, params=True)

    for _ in range(40):
        assert interrupt(work, 10e-3)
        loaded.load(path)
        assert loaded.t <= opt.t
        while alone.t < loaded.t:
            step(alone)
        assert digest_of_model(alone) == digest_of_model(loaded), loaded.t
    print("whole" if loaded.t > 0 else "nothing saved")
    print(os.listdir("."))
    """
    *_, result, files = python(INTERRUPTED.format(seed=seed) + MODEL + script).splitlines()
    assert (result, files) == ("whole", str([f"state{suffix}"]))
