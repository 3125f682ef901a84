"""Several OpenMP runtimes in one process: whoever is loaded first, our steps have the same bits.

torch, scikit-learn and numba bring or load a runtime each. torch's is visible to every library that
is loaded after it, ours among them.
"""

import pytest

LIBRARIES = ("torch", "sklearn", "numba", "adafactor_native")
ORDERS = [
    order.split()
    for order in (
        "adafactor_native torch sklearn numba",
        "torch sklearn numba adafactor_native",
        "sklearn adafactor_native numba torch",
        "numba adafactor_native torch sklearn",
        "torch adafactor_native sklearn numba",
        "sklearn numba torch adafactor_native",
        "numba torch sklearn adafactor_native",
        "adafactor_native numba sklearn torch",
        "adafactor_native sklearn torch numba",
        "sklearn torch adafactor_native numba",
    )
]

# Each library's own threads run between our steps, and afterwards theirs are asked for their results.
SCRIPT = """
    import importlib
    import numpy as np
    for name in {order}:
        importlib.import_module(name)

    from optimizers import digest_of_run
    expected = digest_of_run(1)

    def of_torch():
        import torch
        torch.set_num_threads(2)
        x = torch.ones(1 << 20)
        assert float((x + x).sum()) == 2 << 20

    def of_sklearn():
        from sklearn.ensemble import HistGradientBoostingClassifier
        x = np.arange(4000.0).reshape(-1, 1)
        y = (x[:, 0] > 2000).astype(int)
        assert HistGradientBoostingClassifier(max_iter=2).fit(x, y).score(x, y) > 0.99

    def of_numba():
        import numba
        if numba.config.DISABLE_JIT:
            return
        @numba.njit(parallel=True)
        def total(x):
            result = 0.0
            for k in numba.prange(x.size):
                result += x[k]
            return result
        assert total(np.ones(1 << 16)) == 1 << 16

    work = {{"torch": of_torch, "sklearn": of_sklearn, "numba": of_numba}}
    for name in {order}:
        digests = [digest_of_run(threads) for threads in (2, 3)]
        work.get(name, lambda: None)()
        digests += [digest_of_run(threads) for threads in (3, 2)]
        assert digests == [expected] * 4, (name, digests, expected)
    print(expected)
"""


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(order, marks=[] if n < 2 else pytest.mark.soak, id=" ".join(order))
        for n, order in enumerate(ORDERS)
    ],
)
def test_any_order_of_imports(python, require_installed, order):
    require_installed("torch", "sklearn", "numba")
    alone = python("from optimizers import digest_of_run; print(digest_of_run(1))")
    # What the other libraries warn of is not the subject.
    assert python(SCRIPT.format(order=order), PYTHONWARNINGS="ignore") == alone
