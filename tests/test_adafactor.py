"""What a step computes, against the reference and against the seed's own class.

Many tests take lr=1: the update is then as large as the parameter, whose rounding hides no error.
"""

import functools
import inspect

import numpy as np
import pytest

import adafactor_native as an
from arrays import DTYPE_PAIRS, DTYPES, normal, spread
from buffers import Buffer
from compare import assert_step_matches, largest
from optimizers import digest
from oracle.seed import AdaFactor as Seed

SHAPES = [
    (),
    (1,),
    (7,),
    (1000,),
    (1, 1),
    (1, 9),
    (9, 1),
    (3, 4),
    (1, 1, 1),
    (2, 3, 4),
    (3, 1, 2, 5),
    (2, 0, 3),
]

# Either side of every power of two a block, a panel or a tile could be cut at; long and tall.
BLOCK_EDGES = [
    *[(rows, cols) for rows in (63, 64, 65) for cols in (127, 128, 129)],
    *[shape for n in (255, 257, 511, 513, 1023, 1024, 1025) for shape in ((n, 2), (2, n))],
    *[shape for n in (2047, 2049, 4095, 4096, 4097) for shape in ((n, 5), (5, n))],
    *[shape for n in (8193, 16385, 70001) for shape in ((n, 3), (3, n), (n, 1), (1, n))],
    (257, 1031),
]
VECTOR_EDGES = [n + d for n in (64, 128, 1024, 4096, 8192, 65536) for d in (-1, 0, 1)]

# The grid of fifty steps: shape, smallest and largest gradient
GRID = [
    ((1, 1), 1e-12, 1e-12),
    ((1, 13), 1e-12, 1e6),
    ((13, 1), 1e-12, 1e6),
    ((37, 29), 1e-12, 1e6),
    ((37, 29), 1e-12, 1e-12),
    ((37, 29), 1e6, 1e6),
    ((64, 65), 1e-12, 1e6),
    ((1031, 517), 1e-12, 1e6),
    ((517,), 1e-12, 1e6),
    ((3, 5, 7), 1e-12, 1e6),
]


@pytest.mark.parametrize("param_dtype, grad_dtype", DTYPE_PAIRS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_step_matches_reference(shape, param_dtype, grad_dtype, isa):
    opt = an.AdaFactor(shape, lr=1.0)
    param = normal(shape, param_dtype)
    for t in range(3):
        assert_step_matches(opt, param, normal(shape, grad_dtype, seed=t + 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tail(dtype, isa):
    """Every number of rows and of columns up to four vectors and a bit, between guards."""
    for n in range(68):
        for m in (1, 3, 17, 67):
            assert_guarded_step_matches((n, m), dtype)
            assert_guarded_step_matches((m, n), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_vector_tail(dtype, isa):
    for n in range(132):
        assert_guarded_step_matches((n,), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", BLOCK_EDGES, ids=str)
def test_block_edges(shape, dtype):
    assert_guarded_step_matches(shape, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [*VECTOR_EDGES, 500003])
def test_block_edges_of_vectors(n, dtype):
    assert_guarded_step_matches((n,), dtype)


def assert_guarded_step_matches(shape, dtype):
    """One step with param and grad off every vector boundary and NaNs on either side of them."""
    param = Buffer(normal(shape, dtype, seed=1), "misaligned")
    grad = Buffer(normal(shape, dtype, seed=2), "misaligned")
    assert_step_matches(an.AdaFactor(shape, lr=1.0), param.array, grad.array)
    param.assert_guards_intact()


@functools.cache
def gradients(shape, smallest, largest):
    """Ten gradients, in float32 so that both runs see the same numbers."""
    return [spread(shape, np.float32, seed, smallest, largest) for seed in range(10)]


@pytest.mark.parametrize("scale_parameter", [True, False], ids=["scaled", "unscaled"])
@pytest.mark.parametrize("clip_threshold", [0.1, 1, 1e9])
@pytest.mark.parametrize("eps", [1e-30, 1e-8, 1e-3])
@pytest.mark.parametrize("shape, smallest, biggest", GRID, ids=str)
def test_fifty_steps_like_the_seed(shape, smallest, biggest, eps, clip_threshold, scale_parameter):
    hyper = {"eps": eps, "clip_threshold": clip_threshold, "scale_parameter": scale_parameter}
    start = normal(shape, np.float32, seed=99)
    seed, expected = Seed(shape, **hyper), start.astype(np.float64)
    runs = {dtype: (an.AdaFactor(shape, **hyper), start.astype(dtype)) for dtype in DTYPES}
    size = 0.0
    for t in range(50):
        grad = gradients(shape, smallest, biggest)[t % 10]
        for dtype, (opt, param) in runs.items():
            opt.update(param, grad.astype(dtype))
        expected = seed.update(expected, grad.astype(np.float64))
        size = max(size, largest(expected))

    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-6)):
        _, param = runs[dtype]
        assert largest(param - expected) <= tolerance * size, dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("eps", [0.0, 1e-20, 1e-16, 1e-14, 1e-12, 1e-9, 1e-6, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("shape", [(5, 33), (40,)], ids=str)
def test_eps_of_every_size(shape, eps, size, dtype):
    """Also where eps under the fraction is only just lost in sqrt(V), or only just not."""
    opt = an.AdaFactor(shape, lr=1.0, eps=eps, clip_threshold=0.5)
    param = normal(shape, dtype)
    for t in range(2):
        assert_step_matches(opt, param, normal(shape, dtype, seed=t + 1, scale=size))


@pytest.mark.parametrize("eps", [0.0, 1e-40, 1e-80, 1e-30])
@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-25, 1e-19, 1e18, 1e20, 1e30, 1e37])
@pytest.mark.parametrize("shape", [(70, 33), (1, 40), (40,)], ids=str)
def test_gradients_whose_squares_leave_float32(shape, size, eps):
    opt = an.AdaFactor(shape, lr=1.0, eps=eps)
    param = normal(shape, np.float32)
    for t in range(2):
        grad = normal(shape, np.float32, seed=t + 1, scale=size)
        grad[grad == 0] = size  # rounded to nothing, which eps=0 does not allow
        assert_step_matches(opt, param, grad)


@pytest.mark.parametrize("eps", [0.0, 1e-300, 1e-30])
@pytest.mark.parametrize("size", [1e-150, 1e-100, 1e100, 1e150])
@pytest.mark.parametrize("shape", [(70, 33), (5, 1200), (40,)], ids=str)
def test_gradients_whose_squares_nearly_leave_float64(shape, size, eps):
    """Here the seed's outer product of the two means is lost; the formula's value is not."""
    opt = an.AdaFactor(shape, lr=1.0, eps=eps)
    param = normal(shape)
    for t in range(2):
        assert_step_matches(opt, param, normal(shape, seed=t + 1, scale=size))


@pytest.mark.parametrize("eps", [1e-30, 1e-80, 1e-300])
@pytest.mark.parametrize("param_dtype, grad_dtype", DTYPE_PAIRS)
def test_one_gradient_from_smallest_to_largest(param_dtype, grad_dtype, eps):
    """Rows of 1e-30 beside rows of 1e30, and dead ones: no factor may leave its type's range."""
    shape = (150, 70)
    opt = an.AdaFactor(shape, lr=1.0, eps=eps)
    param = normal(shape, param_dtype)
    for t in range(2):
        assert_step_matches(opt, param, spread(shape, grad_dtype, t + 1, 1e-30, 1e30))


@pytest.mark.parametrize("clip_threshold", [1e-30, 1e-12, 1e-6, 1.0])
@pytest.mark.parametrize("eps", [1e-30, 1e-60])
@pytest.mark.parametrize(
    "sizes", [(1e25, 1e17, 1), (1e-25, 1e-17, 1), (1e20, 1, 1e-20), (1e18, 1e-5, 1)], ids=str
)
@pytest.mark.parametrize("shape", [(70, 33), (5, 1200), (40,)], ids=str)
def test_gradients_that_grow_and_shrink(shape, sizes, eps, clip_threshold):
    """A history far larger or smaller than the gradient: u, and so the clip, is tiny or huge."""
    opt = an.AdaFactor(shape, lr=1.0, beta2=0.9, eps=eps, clip_threshold=clip_threshold)
    param = normal(shape, np.float32)
    for t, size in enumerate(sizes):
        opt.lr = 1 / clip_threshold
        assert_step_matches(opt, param, normal(shape, np.float32, seed=t + 1, scale=size))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [1e-30, 1e-80, 5e-324])
@pytest.mark.parametrize("shape", [(6, 35), (35,), (2, 3, 4)], ids=str)
def test_zero_gradients_first_then_others(shape, eps, dtype):
    opt = an.AdaFactor(shape, eps=eps)
    param = normal(shape, dtype)
    start = param.copy()
    if eps > 1e-300 or opt.v is not None:  # else mean(exp_row) is 0, and 0/0 no step at all
        for _ in range(2):
            assert_step_matches(opt, param, np.zeros(shape, dtype))
        np.testing.assert_array_equal(param, start)
    for t in range(3):
        assert_step_matches(opt, param, normal(shape, dtype, seed=t))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dead_rows_and_columns_come_alive(dtype):
    shape = (20, 37)
    opt = an.AdaFactor(shape)
    param = normal(shape, dtype)
    for t in range(4):
        grad = normal(shape, dtype, seed=t)
        grad[t::3] = 0
        grad[:, 2 * t : 2 * t + 5] = 0
        assert_step_matches(opt, param, grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 2), (12, 37), (5, 2100)], ids=str)
def test_second_moment_below_every_float64(shape, dtype):
    """Row 0 and column 0 fade together: V[0, 0] underflows, yet 0 / sqrt(V[0, 0]) is 0, not 0/0."""
    opt = an.AdaFactor(shape, beta2=1e-100, eps=0.0)
    param = normal(shape, dtype)
    for t in range(3):
        grad = normal(shape, dtype, seed=t)
        if t > 0:
            grad[0] = grad[:, 0] = 0
        assert_step_matches(opt, param, grad)
    assert opt.exp_row[0] * opt.exp_col[0] == 0 < min(opt.exp_row[0], opt.exp_col[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(9, 20), (50,)], ids=str)
def test_hyper_parameters_change_between_steps(shape, dtype):
    opt = an.AdaFactor(shape)
    param = normal(shape, dtype)
    schedule = [
        {"lr": 1.0, "clip_threshold": 0.01},
        {"eps": 1e-3, "beta2": 0.5},
        {"scale_parameter": False, "clip_threshold": None},
        {"beta2": 0.0, "eps": 1e-30},
        {"beta2": 1.0},
        {"lr": 0.0, "scale_parameter": True, "clip_threshold": np.inf},
    ]
    for t, changes in enumerate(schedule):
        for name, value in changes.items():
            setattr(opt, name, value)
            assert getattr(opt, name) == value
        assert_step_matches(opt, param, normal(shape, dtype, seed=t))


@pytest.mark.parametrize("shape", [(), (6,), (5, 8)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_lr_zero_moves_only_the_state(shape, dtype):
    opt, param = an.AdaFactor(shape, lr=0.0), normal(shape, dtype)
    start = param.copy()
    assert_step_matches(opt, param, normal(shape, dtype, seed=1))
    assert param.tobytes() == start.tobytes()
    assert np.all((opt.exp_row if opt.factored else opt.v) > 0)


def test_a_parameter_of_zeros_stays_there_when_scaled():
    opt, param = an.AdaFactor((3, 4)), np.zeros((3, 4))
    assert_step_matches(opt, param, normal((3, 4)))
    assert not param.any()
    opt.scale_parameter = False
    assert_step_matches(opt, param, normal((3, 4)))
    assert param.all()


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (0, 0), (2, 0, 3)], ids=str)
def test_no_elements_only_count_the_step(shape):
    opt, param = an.AdaFactor(shape), np.zeros(shape, np.float32)
    for t in (1, 2):
        assert opt.update(param, np.zeros(shape)) is param
        assert opt.t == t
    for state in (opt.exp_row, opt.exp_col, opt.v):
        assert state is None or not state.any()


def test_arguments_are_the_seeds():
    ours = list(inspect.signature(an.AdaFactor).parameters.values())
    seeds = list(inspect.signature(Seed).parameters.values())
    assert [(p.name, p.default) for p in ours[: len(seeds)]] == [(p.name, p.default) for p in seeds]
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in ours[: len(seeds)])
    assert [(p.name, p.kind) for p in ours[len(seeds) :]] == [
        ("num_threads", inspect.Parameter.KEYWORD_ONLY),
        ("nonfinite", inspect.Parameter.KEYWORD_ONLY),
        ("carry_param_rms", inspect.Parameter.KEYWORD_ONLY),
        ("rounding", inspect.Parameter.KEYWORD_ONLY),
        ("seed", inspect.Parameter.KEYWORD_ONLY),
        ("state_dtype", inspect.Parameter.KEYWORD_ONLY),
    ]
    assert list(inspect.signature(an.AdaFactor.update).parameters) == ["self", "param", "grad"]


@pytest.mark.parametrize("shape", [(3, 4), [3, 4], np.array([3, 4])], ids=repr)
def test_attributes_of_a_matrix(shape):
    opt = an.AdaFactor(shape, 0.5, 0.75, 1e-8, 2, False, num_threads=3, nonfinite="skip")
    assert (opt.shape, opt.factored, opt.t, opt.skipped) == ((3, 4), True, 0, 0)
    assert (opt.lr, opt.beta2, opt.eps, opt.clip_threshold) == (0.5, 0.75, 1e-8, 2)
    assert (opt.scale_parameter, opt.num_threads, opt.nonfinite) == (False, 3, "skip")
    assert opt.v is None
    for state, n in ((opt.exp_row, 3), (opt.exp_col, 4)):
        assert (state.shape, state.dtype, state.any()) == ((n,), np.float64, False)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)], ids=str)
def test_attributes_of_anything_else(shape):
    opt = an.AdaFactor(shape)
    assert (opt.shape, opt.factored, opt.exp_row, opt.exp_col) == (shape, False, None, None)
    assert (opt.v.shape, opt.v.dtype, opt.v.any()) == (shape, np.float64, False)


@pytest.mark.parametrize("shape", [(3, 4), (5,)], ids=str)
def test_state_is_live(shape):
    """The arrays read once are the ones every step updates, and what is written there counts."""
    opt, param = an.AdaFactor(shape), normal(shape)
    state = [x for x in (opt.exp_row, opt.exp_col, opt.v) if x is not None]
    assert_step_matches(opt, param, normal(shape, seed=1))
    assert all(x.all() for x in state)
    for x in state:
        x *= 4
    assert_step_matches(opt, param, normal(shape, seed=2))
    now = [x for x in (opt.exp_row, opt.exp_col, opt.v) if x is not None]
    assert all(x is y or np.shares_memory(x, y) for x, y in zip(state, now))


def test_a_gradient_that_is_a_view_of_fewer_numbers():
    """Elements of grad may overlap: they are only read."""
    grad = np.broadcast_to(normal(7, seed=1), (5, 7))
    opt, param = an.AdaFactor((5, 7)), normal((5, 7))
    assert_step_matches(opt, param, grad)


@pytest.mark.soak
def test_more_elements_than_32_bits_count():
    """All rows of grad are one row, so all rows of param end as the one row of a 1xN matrix."""
    rows, cols = 65537, 32769
    row = normal(cols, np.float32)
    param, alone = np.ones((rows, cols), np.float32), np.ones((1, cols), np.float32)
    opt, opt_alone = an.AdaFactor(param.shape), an.AdaFactor(alone.shape)
    opt.update(param, np.broadcast_to(row, param.shape))
    assert_step_matches(opt_alone, alone, row[None])
    np.testing.assert_allclose(opt.exp_row, opt_alone.exp_row[0], rtol=1e-6)
    np.testing.assert_allclose(opt.exp_col, opt_alone.exp_col, rtol=1e-6)
    np.testing.assert_allclose(param[0], alone[0], rtol=1e-6)
    assert all((part == param[0]).all() for part in np.array_split(param, 64))


def test_clip_none_is_no_clip():
    params = []
    for clip_threshold in (None, np.inf, 1e300):
        opt, param = an.AdaFactor((3, 4), clip_threshold=clip_threshold), normal((3, 4))
        assert_step_matches(opt, param, normal((3, 4), seed=1))
        params.append(digest(opt, param))
    assert len(set(params)) == 1


def test_repr_tells_what_it_is():
    opt = an.AdaFactor((3, 4), lr=0.5, clip_threshold=None)
    text = repr(opt)
    assert "AdaFactor(" in text and "(3, 4)" in text
    assert "lr=0.5" in text and "clip_threshold=None" in text
