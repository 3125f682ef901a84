"""Every layout of param and grad: right numbers inside the view, not one byte touched outside."""

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import adafactor_native as an
from adafactor_native import Optimizer
from arrays import DTYPE_PAIRS, DTYPES, normal
from buffers import LAYOUTS, Buffer
from compare import assert_step_matches
from optimizers import KINDS

# Matrices that fit in one block, are cut into several, are tall and are wide
MATRICES = [(37, 53), (200, 130), (700, 5), (5, 700)]
OTHERS = [(), (1,), (150,), (5, 6, 7), (2, 3, 4, 5)]


def assert_steps_match(shape, dtypes, layouts, **hyper):
    """Two steps with param and grad in guarded buffers of these layouts."""
    opt = an.AdaFactor(shape, **hyper)
    param = Buffer(normal(shape, dtypes[0]), layouts[0])
    for t in range(2):
        grad = Buffer(normal(shape, dtypes[1], seed=t + 1), layouts[1])
        assert_step_matches(opt, param.array, grad.array)
        param.assert_guards_intact()


@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("param_layout", LAYOUTS)
def test_every_pair_of_layouts(param_layout, grad_layout):
    assert_steps_match((37, 53), (np.float32, np.float32), (param_layout, grad_layout))


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [*MATRICES, *OTHERS], ids=str)
def test_every_shape_and_dtype(shape, layout, dtypes):
    assert_steps_match(shape, dtypes, (layout, "C"))
    assert_steps_match(shape, dtypes, ("C", layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_instruction_set(layout, isa):
    for shape in ((37, 53), (53,)):
        assert_steps_match(shape, (np.float32, np.float32), (layout, layout))
        assert_steps_match(shape, (np.float64, np.float64), (layout, layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_paths_of_the_step(layout):
    """eps that matters under the fraction, squares beyond float32, no scale."""
    single = (np.float32, np.float32)
    assert_steps_match((37, 53), single, (layout, layout), eps=1e-3)
    assert_steps_match((37, 53), single, (layout, layout), scale_parameter=False)
    opt = an.AdaFactor((37, 53), eps=1e-60)
    param = Buffer(normal((37, 53), np.float32), layout)
    for t, size in enumerate((1e-25, 1e30)):
        grad = Buffer(normal((37, 53), np.float32, seed=t + 1, scale=size), layout)
        assert_step_matches(opt, param.array, grad.array)
    param.assert_guards_intact()


@pytest.mark.parametrize("axes", [(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)], ids=str)
def test_axes_in_any_order(axes):
    whole = Buffer(normal((6, 7, 8), np.float32))
    param = whole.array.transpose(axes)
    opt = an.AdaFactor(param.shape)
    for t in range(2):
        assert_step_matches(opt, param, normal(param.shape, np.float32, seed=t + 1))
    whole.assert_guards_intact()


@pytest.mark.parametrize("dtype", DTYPES)
def test_field_of_a_record_array(dtype):
    records = np.full((6, 9), 7, [("before", "u1"), ("x", dtype), ("after", "i8", 2)])
    records["x"] = normal((6, 9))
    assert_step_matches(an.AdaFactor((6, 9)), records["x"], normal((6, 9), dtype, seed=1))
    assert (records["before"] == 7).all() and (records["after"] == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_param_and_grad_interleaved_in_one_base(dtype):
    """They share a base but not one element, so this is allowed."""
    base = normal((8, 20), dtype)
    assert_step_matches(an.AdaFactor((8, 10)), base[:, ::2], base[:, 1::2])
    assert_step_matches(an.AdaFactor((4, 20)), base[::2], base[1::2])
    assert_step_matches(an.AdaFactor((10, 8)), base.T[::2], base.T[1::2])


def test_strides_of_axes_of_length_one_do_not_matter():
    values = normal(5, np.float32)
    for shape, strides in [((1, 5), (0, 4)), ((1, 5), (2, 4)), ((5, 1), (4, 0)), ((5, 1), (4, -3))]:
        param = as_strided(values, shape, strides)
        assert_step_matches(an.AdaFactor(shape), param, normal(shape, np.float32, seed=1))


@pytest.mark.parametrize("transposed", [False, True])
def test_strides_beyond_32_bits(tmp_path, transposed):
    """Three rows of 4 GiB, of which the sparse file holds a page or two."""
    base = np.memmap(tmp_path / "sparse.bin", np.float32, "w+", shape=(3, 1 << 30))
    beside, view = base[:, 50:99], base[:, :50]
    param = view.T if transposed else view
    param[...] = normal(param.shape)
    assert_step_matches(an.AdaFactor(param.shape), param, normal(param.shape, seed=1))
    assert not beside.any()


def test_writeable_memory_map(tmp_path):
    path = tmp_path / "param.bin"
    normal((30, 40), np.float32).tofile(path)
    param = np.memmap(path, np.float32, "r+", shape=(30, 40))
    assert_step_matches(an.AdaFactor((30, 40)), param, normal((30, 40), seed=1))
    param.flush()
    np.testing.assert_array_equal(np.fromfile(path, np.float32).reshape(30, 40), param)


def test_read_only_gradient(tmp_path):
    path = tmp_path / "grad.bin"
    normal((30, 40)).tofile(path)
    grad = np.memmap(path, np.float64, "r", shape=(30, 40))
    assert_step_matches(an.AdaFactor((30, 40)), normal((30, 40), np.float32), grad)


def test_interleaved_params_and_gradients_are_no_overlap():
    whole = normal((40, 30), np.float32)
    params = {"even": whole[:, ::2], "odd": whole[:, 1::2]}
    expected = {name: param.copy() for name, param in params.items()}
    grads = {"even": normal((40, 15), seed=1), "odd": normal((40, 15), seed=2)}
    Optimizer(params, convention="numpy").step(grads)
    Optimizer(expected, convention="numpy").step(grads)
    for name, param in params.items():
        np.testing.assert_array_equal(param, expected[name])
    with pytest.raises(ValueError, match=r"^grads\['odd'\] overlaps params\['even'\], must not"):
        Optimizer(params, convention="numpy").step({"even": grads["even"], "odd": whole[:, ::2]})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [*MATRICES, *OTHERS], ids=str)
def test_both_classes_give_the_same_bits(shape, layout):
    """And touch not one byte outside the view."""
    digests = set()
    for kind in KINDS.values():
        param = Buffer(normal(shape, np.float32), layout)
        run = kind(param.array)
        for t in range(2):
            run.step(Buffer(normal(shape, np.float32, seed=t + 1), layout).array)
        param.assert_guards_intact()
        digests.add(run.digest())
    assert len(digests) == 1
