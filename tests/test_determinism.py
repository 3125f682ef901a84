"""The same bits for every number of threads, instruction set, place in memory, order and company."""

import numpy as np
import pytest

import adafactor_native as an
from adafactor_native import AdaFactor, Optimizer
from arrays import DTYPE_PAIRS, DTYPES, normal, spread
from buffers import LAYOUTS, Buffer, Layout
from optimizers import KINDS, digest_of_model, digest_of_run
from oracle import halves_reference as halves

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


def digest_after(kind, start, grads, layout="C", threads=None, **hyper):
    """Step through grads from a copy of start, laid out as told, and return the digest."""
    run = kind(Buffer(start, layout).array, num_threads=threads, **hyper)
    for grad in grads:
        run.step(grad)
    return run.digest()


def digests_of_both_classes(each_isa, *args, **hyper):
    """By instruction set and number of threads; an Optimizer's beside those of an AdaFactor."""
    digests = {}
    for isa in each_isa():
        for threads in THREADS:
            digests[isa, threads] = digest_after(
                KINDS["AdaFactor"], *args, threads=threads, **hyper
            )
        digests[isa, "Optimizer"] = digest_after(KINDS["Optimizer"], *args, threads=3, **hyper)
    return digests


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
@pytest.mark.parametrize("case", LARGE)
def test_threads_instruction_sets_and_classes(case, dtypes, each_isa):
    shape, param_layout, grad_layout = LARGE[case]
    start = normal(shape, dtypes[0])
    grads = [Buffer(normal(shape, dtypes[1], seed), grad_layout).array for seed in (1, 2)]
    digests = digests_of_both_classes(each_isa, start, grads, param_layout)
    assert len(set(digests.values())) == 1, digests


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
@pytest.mark.parametrize("shape", [(1031, 517), (64, 20000), (100003,)], ids=str)
def test_every_path_of_the_step(shape, dtypes, path, each_isa):
    hyper, size = PATHS[path]
    start = normal(shape, dtypes[0])
    grads = [normal(shape, dtypes[1], seed, size) for seed in (1, 2)]
    digests = digests_of_both_classes(each_isa, start, grads, **hyper)
    assert len(set(digests.values())) == 1, digests


@pytest.mark.parametrize("eps", [1e-30, 1e-3])
@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
def test_every_tail(dtypes, eps, each_isa):
    start, grads = normal((67, 67), dtypes[0]), spread((67, 67), dtypes[1])
    kind = KINDS["AdaFactor"]
    digests = {
        isa: [
            digest_after(kind, start[:rows, :cols], [grads[:rows, :cols]], eps=eps)
            for rows, cols in np.ndindex(68, 68)
        ]
        + [
            digest_after(kind, start.ravel()[:n], [normal(n, dtypes[1])], eps=eps)
            for n in range(150)
        ]
        for isa in each_isa()
    }
    baseline, *others = digests.values()
    assert all(other == baseline for other in others)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(200, 130), (130, 33), (9, 5000), (5000,)], ids=str)
def test_alignment(shape, dtype, kind):
    """Every offset from a cache line, for param and for grad alone."""
    start, grad = normal(shape, dtype), normal(shape, dtype, seed=1)
    expected = digest_after(kind, start, [grad])
    for offset in range(64):
        place = Layout(offset=offset)
        assert digest_after(kind, start, [grad], place) == expected, offset
        assert digest_after(kind, start, [Buffer(grad, place).array]) == expected, offset


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_row_stride(order, dtype, kind):
    """The rows (in "F", the columns) of a wider matrix, or every second one of a longer."""
    start, grad = normal((200, 130), dtype), normal((200, 130), dtype, seed=1)
    if order == "C":
        places = [LAYOUTS[x] for x in ("column slice", "row step", "odd row pitch")]
    else:
        places = [LAYOUTS["row slice of Fortran"], Layout("F", (1, 2)), Layout("F", margin=3)]
    dense = Layout(order)
    expected = digest_after(kind, start, [Buffer(grad, dense).array], dense)
    for place in places:
        view = Buffer(grad, place).array
        assert digest_after(kind, start, [view], place) == expected, place


def test_same_bits_in_another_process(class_name, python):
    """Also through the environment: its choice of instruction set, walk and threads is obeyed."""
    script = f"""
        import adafactor_native as an, optimizers
        config = an.show_config(mode="dicts")
        digest = optimizers.digest_of_run(kind={class_name!r})
        walk = config["walks"]["forced"]
        print(config["instruction sets"]["running"], walk, an.get_num_threads(), digest)
    """
    expected = digest_of_run()
    available = an.show_config(mode="dicts")["instruction sets"]["available"]
    ways = [(name, "auto", 2) for name in available]
    ways += [(available[0], "side_by_side", 1), (available[0], "one_by_one", 7)]
    for name, walk, threads in ways:
        told = {
            "ADAFACTOR_ISA": name,
            "ADAFACTOR_WALK": walk,
            "ADAFACTOR_NUM_THREADS": str(threads),
        }
        assert python(script, **told).split() == [name, walk, str(threads), expected]


# Models: large tensors, small ones that are stepped together, many small matrices, interleaved
# ones, and none
SHAPES = {
    "large": (1031, 517),
    "wide": (64, 9000),
    "bias": (517,),
    "scalar": (),
    "heads": (12, 96, 64),
    "kernel": (40, 30, 3, 3),
    "large kernel": (64, 96, 3, 3),
    "points": (300, 100, 1, 1),
    "empty": (3, 0),
    **{f"small {i}": (256, 64) for i in range(12)},
    "long": (300001,),
}

RUNS = {
    "numpy": {"convention": "numpy"},
    "last two, clipped together": {
        "convention": "huggingface",
        "beta1": 0.9,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
    },
    "clamped": {"convention": "torch", "eps": (1e-2, 1e-3), "weight_decay": 0.1},
    "two largest, each matrix": {
        "convention": "t5x",
        "learning_rate": 0.1,
        "min_dim_size_to_factor": 3,
    },
    "momentum of u": {"convention": "big_vision", "lr": 0.1, "wd": 0.1},
    "carried": {"convention": "numpy", "factored_axes": "last_two", "carry_param_rms": True},
}

HALF_RUNS = {
    "nearest": {"convention": "numpy"},
    "stochastic": {"convention": "numpy", "rounding": "stochastic", "seed": 9},
    "masters": {
        "convention": "numpy",
        "masters": "float32",
        "rounding": "stochastic",
    },
    "first moments": {
        "convention": "numpy",
        "beta1": 0.9,
        "momentum_dtype": "bfloat16",
        "factored_axes": "last_two",
    },
    "clamped": {"convention": "torch", "eps": (1e-2, 1e-3), "rounding": "stochastic"},
    "each matrix": {
        "convention": "t5x",
        "learning_rate": 0.1,
        "min_dim_size_to_factor": 3,
        "rounding": "stochastic",
    },
    "carried": {"convention": "numpy", "carry_param_rms": True},
    "split": {"convention": "numpy", "masters": "split"},
}


def new_params(dtype=np.float32):
    params = {name: normal(shape, dtype, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}
    params["heads"] = Buffer(params["heads"], "Fortran").array
    return params


def gradients(t, dtype=np.float32):
    return {
        name: normal(shape, np.float32, seed=100 * t + i).astype(dtype)
        for i, (name, shape) in enumerate(SHAPES.items())
    }


def digest_of_steps(grads, dtype=np.float32, **options):
    opt = Optimizer(new_params(dtype), **options)
    for each in grads:
        opt.step(each, grad_scale=4.0)
    return digest_of_model(opt)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("run", RUNS)
def test_threads_instruction_sets_and_atomicity_of_models(run, dtype, each_isa):
    grads = [gradients(t) for t in (1, 2)]
    digests = {
        (isa, threads, atomic): digest_of_steps(
            grads, dtype, num_threads=threads, atomic=atomic, **RUNS[run]
        )
        for isa in each_isa()
        for threads in THREADS
        for atomic in ("all", "tensor")
    }
    assert len(set(digests.values())) == 1, digests


@pytest.mark.parametrize(
    ("run", "dtype"),
    [(run, dtype) for run in HALF_RUNS for dtype in halves.HALVES if run != "split"]
    + [("split", halves.bfloat16)],
    ids=str,
)
def test_threads_instruction_sets_and_atomicity_of_half_precision(run, dtype, each_isa):
    grads = [gradients(t, dtype) for t in (1, 2)]
    digests = {
        (isa, threads, atomic): digest_of_steps(
            grads, dtype, num_threads=threads, atomic=atomic, **HALF_RUNS[run]
        )
        for isa in each_isa()
        for threads in THREADS[:3]
        for atomic in ("all", "tensor")
    }
    assert len(set(digests.values())) == 1, digests


@pytest.mark.parametrize("atomic", ["all", "tensor"])
def test_a_model_steps_as_its_tensors_do_alone(atomic):
    params, alone = new_params(), new_params()
    opt = Optimizer(params, convention="numpy", atomic=atomic)
    optimizers = {name: AdaFactor(shape) for name, shape in SHAPES.items()}
    for t in (1, 2):
        grads = gradients(t)
        opt.step(grads)
        for name in SHAPES:
            optimizers[name].update(alone[name], grads[name])
    for name in SHAPES:
        assert params[name].tobytes() == alone[name].tobytes(), name


@pytest.mark.parametrize("dtype", halves.HALVES, ids=str)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize(
    "shape",
    [(37, 29), (3, 2100), (700, 5), (2051,), (), (40, 9, 3, 3), (3, 20, 33), (0, 4)],
    ids=str,
)
def test_both_classes_round_an_array_alike(shape, rounding, dtype):
    digests = set()
    for kind in KINDS.values():
        run = kind(normal(shape, dtype), lr=0.1, rounding=rounding, seed=3)
        for t in range(3):
            run.step(normal(shape, dtype, seed=t))
        digests.add(run.digest())
    assert len(digests) == 1


@pytest.mark.parametrize("run", [name for name in RUNS if "max_grad_norm" not in RUNS[name]])
def test_order_and_company_do_not_matter(run):
    together = Optimizer(new_params(), **RUNS[run])
    params = new_params()
    reverse = Optimizer(dict(reversed(list(params.items()))), **RUNS[run])
    single = {name: Optimizer({name: param}, **RUNS[run]) for name, param in new_params().items()}
    for t in (1, 2):
        grads = gradients(t)
        together.step(grads)
        reverse.step(grads)
        for name, opt in single.items():
            opt.step({name: grads[name]})
    for name in SHAPES:
        expected = together.params[name].tobytes()
        assert params[name].tobytes() == expected, name
        assert single[name].params[name].tobytes() == expected, name


@pytest.mark.parametrize("run", RUNS)
def test_nothing_is_left_over_from_a_step_that_was_refused(run):
    """A nan in the last tensor: afterwards the run continues as if there had been no such step."""
    grads = [gradients(t) for t in (1, 2)]
    bad = gradients(3)
    bad["long"][-1] = np.nan
    expected = digest_of_steps(grads, **RUNS[run])
    opt = Optimizer(new_params(), **RUNS[run])
    opt.step(grads[0], grad_scale=4.0)
    before = digest_of_model(opt)
    with pytest.raises(FloatingPointError, match=r"grads\['long'\]\[300000\] is nan"):
        opt.step(bad, grad_scale=4.0)
    assert digest_of_model(opt) == before and opt.t == 1
    opt.step(grads[1], grad_scale=4.0)
    assert digest_of_model(opt) == expected
