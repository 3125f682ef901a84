"""The interpreter ends while threads that nobody waits for are in a step: the process ends in order."""

import pytest


@pytest.mark.parametrize("shape", [(300, 200), (2000, 1000)])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_daemon_thread_in_a_step(python, class_name, shape, threads):
    """It waits for the GIL when there is no interpreter any more."""
    script = f"""
        import threading, time
        import numpy as np
        from optimizers import KINDS

        begun = threading.Semaphore(0)

        def steps():
            grad = np.ones({shape}, np.float32)
            run = KINDS[{class_name!r}](np.ones({shape}, np.float32), num_threads={threads})
            run.step(grad)
            begun.release()
            while True:
                run.step(grad)

        for _ in range(4):
            threading.Thread(target=steps, daemon=True).start()
        for _ in range(4):  # all are past NumPy's own loops, which let the GIL go, too
            begun.acquire()
        print("ends")
    """
    assert python(script) == "ends\n"
