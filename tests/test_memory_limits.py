"""Where the address space ends, a step is taken or raises a MemoryError, and changes nothing then."""

import sys

import pytest

LIMITED = """
    import re, resource
    import numpy as np
    from adafactor_native import Optimizer
    from optimizers import digest_of_model

    def model():
        params = [np.ones((1500, 1000), np.float32), np.ones((100, 100, 100), np.float32)]
        return Optimizer(params, lr=1e-3, beta1=0.9, max_grad_norm=1.0, num_threads=4)

    grads = [np.full(p.shape, 0.5, np.float32)[..., ::-1] for p in model().params.values()]
    tiny = Optimizer([np.ones(3, np.float32)])
    tiny.step([np.ones(3, np.float32)])  # what a process makes once
    opt, free = model(), model()
    before = digest_of_model(opt)
    kib = int(re.search(r"VmSize:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (kib * 1024 + {room}, old[1]))
    try:
        opt.step(grads)
        outcome = "stepped"
    except MemoryError:
        outcome = "refused"
    resource.setrlimit(resource.RLIMIT_AS, old)
    if outcome == "refused":
        assert digest_of_model(opt) == before
        opt.step(grads)
    free.step(grads)
    assert digest_of_model(opt) == digest_of_model(free)
    print(outcome)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the size of a process from /proc")
@pytest.mark.parametrize("room", [0, 16 << 10, 128 << 10, 1 << 20, 9 << 20, 40 << 20])
def test_a_step_with_little_room(python, room):
    """Bytes beyond what the process has already."""
    assert python(LIMITED.format(room=room)) in ("stepped\n", "refused\n")


@pytest.mark.skipif(sys.platform != "linux", reason="reads the size of a process from /proc")
def test_with_enough_room_the_same_process_steps(python):
    assert python(LIMITED.format(room=1 << 32)) == "stepped\n"
