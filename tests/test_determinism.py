"""The same bits for every number of threads, every instruction set, every place in memory."""

import numpy as np
import pytest

import adafactor_native as an
from buffers import LAYOUTS, Buffer, Layout
from problems import DTYPE_PAIRS, DTYPES, digest, digest_of_run, normal, spread

THREADS = (1, 2, 3, 7)

# Large enough for several threads: uneven, long, tall, wide, and not factored
LARGE = {
    "uneven": ((1031, 517), "C", "C"),
    "long": ((3000, 700), "C", "C"),
    "tall": ((70001, 9), "C", "C"),
    "wide": ((64, 20000), "C", "C"),
    "one row": ((1, 500003), "C", "C"),
    "one column": ((500003, 1), "C", "C"),
    "Fortran": ((1031, 517), "Fortran", "Fortran"),
    "mixed orders": ((1031, 517), "C", "Fortran"),
    "sliced": ((1031, 517), "column slice", "row step"),
    "steps": ((1031, 517), "both steps", "both reversed"),
    "vector": ((500003,), "C", "C"),
    "vector with steps": ((500003,), "column step", "columns reversed"),
    "four axes": ((64, 3, 31, 67), "C", "Fortran"),
}

# Each takes another way through a step: (hyper-parameters, size of the gradient)
PATHS = {
    "fast": ({}, 1.0),
    "eps under the fraction": ({"eps": 1e-3}, 1.0),
    "squares below float32": ({"eps": 1e-60}, 1e-25),
    "squares above float32": ({}, 1e25),
    "neither clipped nor scaled": ({"clip_threshold": None, "scale_parameter": False}, 1.0),
}


def digest_after(shape, start, grads, layout="C", threads=None, **hyper):
    """Step through grads from a copy of start, laid out as told, and return the digest."""
    opt, param = an.AdaFactor(shape, num_threads=threads, **hyper), Buffer(start, layout).array
    for grad in grads:
        opt.update(param, grad)
    return digest(opt, param)


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
@pytest.mark.parametrize("case", LARGE)
def test_threads_and_instruction_sets(case, dtypes, each_isa):
    shape, param_layout, grad_layout = LARGE[case]
    start = normal(shape, dtypes[0])
    grads = [Buffer(normal(shape, dtypes[1], seed), grad_layout).array for seed in (1, 2)]
    digests = {
        (isa, threads): digest_after(shape, start, grads, param_layout, threads)
        for isa in each_isa()
        for threads in THREADS
    }
    assert len(set(digests.values())) == 1, digests


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
@pytest.mark.parametrize("shape", [(1031, 517), (64, 20000), (100003,)], ids=str)
def test_every_path_of_the_step(shape, dtypes, path, each_isa):
    hyper, size = PATHS[path]
    start = normal(shape, dtypes[0])
    grads = [normal(shape, dtypes[1], seed, size) for seed in (1, 2)]
    digests = {
        (isa, threads): digest_after(shape, start, grads, threads=threads, **hyper)
        for isa in each_isa()
        for threads in THREADS
    }
    assert len(set(digests.values())) == 1, digests


@pytest.mark.parametrize("eps", [1e-30, 1e-3])
@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
def test_every_tail(dtypes, eps, each_isa):
    start, grads = normal((67, 67), dtypes[0]), spread((67, 67), dtypes[1])
    digests = {
        isa: [
            digest_after((rows, cols), start[:rows, :cols], [grads[:rows, :cols]], eps=eps)
            for rows, cols in np.ndindex(68, 68)
        ]
        + [
            digest_after((n,), start.ravel()[:n], [normal(n, dtypes[1])], eps=eps)
            for n in range(150)
        ]
        for isa in each_isa()
    }
    baseline, *others = digests.values()
    assert all(other == baseline for other in others)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(200, 130), (130, 33), (9, 5000), (5000,)], ids=str)
def test_alignment(shape, dtype):
    """Every offset from a cache line, for param and for grad alone."""
    start, grad = normal(shape, dtype), normal(shape, dtype, seed=1)
    expected = digest_after(shape, start, [grad])
    for offset in range(64):
        place = Layout(offset=offset)
        assert digest_after(shape, start, [grad], place) == expected, offset
        assert digest_after(shape, start, [Buffer(grad, place).array]) == expected, offset


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_row_stride(order, dtype):
    """The rows (in "F", the columns) of a wider matrix, or every second one of a longer."""
    start, grad = normal((200, 130), dtype), normal((200, 130), dtype, seed=1)
    if order == "C":
        places = [LAYOUTS[x] for x in ("column slice", "row step", "odd row pitch")]
    else:
        places = [LAYOUTS["row slice of Fortran"], Layout("F", (1, 2)), Layout("F", margin=3)]
    dense = Layout(order)
    expected = digest_after((200, 130), start, [Buffer(grad, dense).array], dense)
    for place in places:
        view = Buffer(grad, place).array
        assert digest_after((200, 130), start, [view], place) == expected, place


def test_same_bits_in_another_process(python):
    """Also through the environment: its choice of instruction set and threads is obeyed."""
    script = """
        import adafactor_native as an, problems
        config = an.show_config(mode="dicts")
        print(config["instruction sets"]["running"], an.get_num_threads(), problems.digest_of_run())
    """
    expected = digest_of_run()
    available = an.show_config(mode="dicts")["instruction sets"]["available"]
    for name, threads in [*((name, 2) for name in available), (available[0], 1), (available[0], 7)]:
        told = {"ADAFACTOR_ISA": name, "ADAFACTOR_NUM_THREADS": str(threads)}
        assert python(script, **told).split() == [name, str(threads), expected]
