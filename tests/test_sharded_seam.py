"""The native half of sharded steps: ranks in one process beside the unsharded optimizer."""

from __future__ import annotations

import hashlib
from functools import partial
from operator import eq
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from adafactor_native import Optimizer
from adafactor_native._runtime import _core
from sharded_ranks import Cut, Ranks, cuts, exchange

Array = npt.NDArray[Any]

optimizer: Any = Optimizer  # of settings that a type checker does not know

STATES = ("exp_row", "exp_col", "v", "m", "master", "low", "copy")


def grid(shape: tuple[int, ...], rows: list[int], cols: list[int]) -> Cut:
    whole = [(0, n) for n in shape[:-2]]
    row_ends, col_ends = [0, *rows, shape[-2]], [0, *cols, shape[-1]]
    return Cut(
        "grid",
        [
            [*whole, (a, b), (c, d)]
            for a, b in zip(row_ends, row_ends[1:])
            for c, d in zip(col_ends, col_ends[1:])
        ],
    )


def flat(shape: tuple[int, ...], edges: list[int]) -> Cut:
    ends = [0, *edges, int(np.prod(shape))]
    return Cut("flat", [[(a, b)] for a, b in zip(ends, ends[1:])])


MATRIX, BATCH, VECTOR, LARGE_BATCH = (250, 100), (5, 48, 40), (5000,), (3, 200, 100)
CUTS = {
    "rows": (MATRIX, cuts("rows", MATRIX, [64, 192], 0)),
    "rows within panels, one empty": (MATRIX, cuts("rows", MATRIX, [50, 50, 111], 0)),
    "columns, one empty": (MATRIX, cuts("cols", MATRIX, [30, 30, 91], 1)),
    "grid": (MATRIX, grid(MATRIX, [101], [33])),
    "irregular boxes": (
        MATRIX,
        Cut("grid", [[(0, 100), (0, 30)], [(0, 100), (30, 100)], [(100, 250), (0, 100)]]),
    ),
    "flat": (MATRIX, flat(MATRIX, [1234, 1235, 1235])),
    "flat rows": (MATRIX, flat(MATRIX, [12300])),
    "rows of a batch": (BATCH, cuts("rows", BATCH, [20], 1)),
    "batch": (BATCH, cuts("batch", BATCH, [2, 2], 0)),
    "batch of large matrices": (LARGE_BATCH, cuts("batch", LARGE_BATCH, [2, 2], 0)),
    "grid of a batch": (
        BATCH,
        Cut(
            "grid",
            [
                [(0, 2), (0, 48), (0, 13)],
                [(0, 2), (0, 48), (13, 40)],
                [(2, 5), (0, 30), (0, 40)],
                [(2, 5), (30, 48), (0, 40)],
            ],
        ),
    ),
    "flat over a batch": (BATCH, flat(BATCH, [1234, 7500])),
    "whole on one rank": (
        MATRIX,
        Cut("whole", [[(0, 250), (0, 100)], [(250, 250), (100, 100)]]),
    ),
    "vector": (VECTOR, cuts("elements", VECTOR, [1024, 1024, 3000], 0)),
    "one": (MATRIX, cuts("rows", MATRIX, [], 0)),
}

CONVENTIONS: dict[str, dict[str, Any]] = {
    "numpy": {},
    "direct": {"eps_mode": "both", "eps": 1e-3},
    "paper": {"convention": "paper", "lr": 1e-2},
    "huggingface": {"convention": "huggingface"},
    "torch": {"convention": "torch", "lr": 1e-2, "weight_decay": 0.01},
    "optax": {"convention": "optax", "learning_rate": 1e-2, "min_dim_size_to_factor": 16},
    "keras": {"convention": "keras", "learning_rate": 1e-2},
    "big_vision": {"convention": "big_vision", "lr": 1e-2},
    "momentum": {"beta1": 0.9},
    "clipped by norm": {"max_grad_norm": 0.5},
    "direct, clipped by norm": {"eps_mode": "both", "eps": 1e-3, "max_grad_norm": 9.0},
    "float32 state": {"state_dtype": "float32"},
}


def gradients(shape: tuple[int, ...], n: int, seed: int, over: float = 1e4) -> list[Array]:
    """Rows whose sizes differ by up to `over`."""
    rng = np.random.default_rng(seed)
    grads = []
    for _ in range(n):
        g = rng.standard_normal(shape)
        if len(shape) > 1:
            g *= np.exp(rng.uniform(0, np.log(over), (*shape[:-1], 1))) / over
        grads.append(g)
    return grads


def assert_beside(
    cut: Cut,
    shape: tuple[int, ...],
    dtype: Any,
    settings: dict[str, Any],
    steps: int = 3,
    groups: bool = False,
) -> None:
    rng = np.random.default_rng(1)
    param = rng.standard_normal(shape).astype(dtype)
    opt = optimizer({"w": param}, **settings)
    ranks = Ranks(opt, {"w": cut}, len(cut.by_rank), groups=groups)
    for grad in gradients(shape, steps, 2):
        grad = grad.astype(dtype)
        before = param.astype(float).copy()
        results = ranks.step([grad])
        for result in results:
            if isinstance(result, Exception):
                raise result
        assert len(ranks.exchanges) <= 4
        report = opt.step([grad])
        for result in results:
            for own, first in zip(result, results[0]):
                np.testing.assert_array_equal(own, first)
        wide = dtype is np.float64
        rtol = 1e-9 if wide else 1e-4
        for name, mine in zip(
            ("rms_grad", "rms_u", "clip_divisor", "rms_param", "step_size"), results[0][0][0]
        ):
            np.testing.assert_allclose(mine, report["w"][name], rtol=rtol)
        update = np.abs(param.astype(float) - before).max()
        error = np.abs(ranks.gathered("param", 0).astype(float) - param.astype(float)).max()
        rounding = 0 if wide else 2.0**-23 * np.abs(param).max()
        assert error <= (1e-11 if wide else 1e-4) * update + rounding
        assert error <= (1e-12 if wide else 1e-6) * np.abs(param).max()
        for kind in STATES:
            state = getattr(opt._all_tensors()[0], kind)
            if state is not None:
                scale = np.abs(state.astype(float)).max() or 1
                gathered = ranks.gathered(kind, 0).astype(float)
                off = np.abs(gathered - state.astype(float)).max()
                assert off <= (1e-6 if kind != "m" else 1e-4) * scale


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("cut", CUTS)
def test_ranks_take_the_step_of_one_process(cut: str, convention: str, dtype: Any) -> None:
    shape, by_rank = CUTS[cut]
    settings = dict(CONVENTIONS[convention])
    axes = optimizer({"w": np.ones(shape)}, **settings).tensors[0].axes
    if by_rank.layout == "flat" and axes is not None and axes[0] > axes[1]:
        with pytest.raises(ValueError, match="factored over its last two axes"):
            assert_beside(by_rank, shape, dtype, settings)
    else:
        assert_beside(by_rank, shape, dtype, settings)


def cells(shape: tuple[int, int], rows: int, cols: int, replicas: int = 1) -> Cut:
    """Return a grid of cells about as large, the first row of cells without elements, and copies of it."""
    row_ends = np.linspace(0, shape[0], rows).astype(int).tolist()
    col_ends = np.linspace(0, shape[1], cols + 1).astype(int).tolist()
    own = [
        [(a, b), (c, d)]
        for a, b in zip([0, *row_ends], row_ends)
        for c, d in zip(col_ends, col_ends[1:])
    ]
    speaks = [True] * len(own) + [False] * len(own) * (replicas - 1)
    has = [all(b > a for a, b in ranges) for ranges in own] * replicas
    return Cut("grid", own * replicas, [a and b for a, b in zip(speaks, has)])


GROUPED = {
    **{name: CUTS[name] for name in ("grid", "flat", "flat rows", "irregular boxes")},
    **{name: CUTS[name] for name in ("grid of a batch", "flat over a batch")},
    "8 x 6": (MATRIX, cells(MATRIX, 8, 6)),
    "5 x 16": ((300, 260), cells((300, 260), 5, 16)),
    "4 x 3, three times": (MATRIX, cells(MATRIX, 4, 3, 3)),
    "flat, some shorter than a row": (MATRIX, flat(MATRIX, [10, 30, 130, 333, 9000, 24970])),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("cut", GROUPED)
def test_groups_of_ranks_take_the_step_of_one_process(
    cut: str, convention: str, dtype: Any
) -> None:
    shape, by_rank = GROUPED[cut]
    settings = dict(CONVENTIONS[convention])
    axes = optimizer({"w": np.ones(shape)}, **settings).tensors[0].axes
    if by_rank.layout != "flat" or axes is None or axes[0] < axes[1]:
        assert_beside(by_rank, shape, dtype, settings, groups=True)


@pytest.mark.parametrize("cut", GROUPED)
def test_groups_and_all_ranks_write_the_same_but_for_rounding(cut: str) -> None:
    shape, by_rank = GROUPED[cut]
    found = []
    for groups in (False, True):
        param = np.random.default_rng(30).standard_normal(shape)
        ranks = Ranks(Optimizer({"w": param}), {"w": by_rank}, len(by_rank.by_rank), groups=groups)
        for grad in gradients(shape, 3, 31):
            ranks.step([grad])
        kinds = (
            "param",
            *(kind for kind in STATES if getattr(ranks.tensors[0][0], kind) is not None),
        )
        found.append([ranks.gathered(kind, 0) for kind in kinds])
        if groups and cut in ("grid", "8 x 6", "5 x 16", "4 x 3, three times"):
            assert ranks.exchanges[1] == ("sum", 1 + 9)  # a header, and three sums of three words
    for mine, other in zip(*found):
        np.testing.assert_allclose(mine, other, rtol=1e-13)


ALIGNED = {
    "rows": ((1024, 96), [128, 192, 640]),
    "many rows": ((4096, 64), [64, 2048]),
    "wide": ((512, 1500), [64, 448]),
    "with an end": ((300, 200), [64, 256]),
}


# A line's size beside the others', the step that shows it, eps: factors that floats do not hold.
EXTREMES = {
    "large": (1e37, 1e-9, 1e-30),  # 1e-9 / 1e37 is no float
    "large, direct form": (1e37, 1e-9, 1e-3),
    "small": (1e-39, 1.0, 0.0),  # nor is 1 / 1e-39
}


@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("cut", [name for name, (shape, _) in CUTS.items() if len(shape) > 1])
def test_extremes_of_one_rank_are_those_of_all(cut: str, extreme: str, axis: int) -> None:
    """A line in the middle has factors that floats do not hold: no rank may take floats."""
    shape, by_rank = CUTS[cut]
    line, lr, eps = EXTREMES[extreme]
    param = lr * np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    settings = {"convention": "numpy", "clip_threshold": 1e9, "scale_parameter": False}
    opt = optimizer({"w": param}, lr=lr, eps=eps, factored_axes="last_two", **settings)
    ranks = Ranks(opt, {"w": by_rank}, len(by_rank.by_rank))
    size = np.where(np.arange(shape[axis]) == shape[axis] // 2, line, 1.0)
    grad = gradients(shape, 1, 3, over=2)[0] * (size if axis == -1 else size[:, None])
    before = param.copy()
    ranks.step([grad.astype(np.float32)])
    opt.step([grad.astype(np.float32)])
    change = param - before
    assert np.abs(change).max() > 0
    error = np.abs(ranks.gathered("param", 0) - param)
    np.testing.assert_array_less(error, 1e-4 * np.abs(change) + 2.0**-22 * np.abs(param))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "convention",
    ["numpy", "direct", "paper", "clipped by norm", "direct, clipped by norm", "momentum"],
)
@pytest.mark.parametrize("rows", ALIGNED)
def test_rows_cut_between_panels_give_the_same_bits(rows: str, convention: str, dtype: str) -> None:
    shape, edges = ALIGNED[rows]
    rng = np.random.default_rng(3)
    param = rng.standard_normal(shape).astype(dtype)
    opt = optimizer({"w": param}, **CONVENTIONS[convention])
    cut = cuts("rows", shape, edges, 0)
    ranks = Ranks(opt, {"w": cut}, len(cut.by_rank))
    for grad in gradients(shape, 3, 4, 64):
        grad = grad.astype(dtype)
        results = ranks.step([grad])
        assert len(ranks.exchanges) <= 4
        report = opt.step([grad])
        np.testing.assert_array_equal(ranks.gathered("param", 0), param)
        for kind in ("exp_row", "exp_col"):
            np.testing.assert_array_equal(
                ranks.gathered(kind, 0), getattr(opt._all_tensors()[0], kind)
            )
        names = ("rms_grad", "rms_u", "clip_divisor", "rms_param", "step_size")
        for numbers, norms, *_ in results:
            np.testing.assert_array_equal(numbers[0], [report["w"][name] for name in names])
            assert norms[0] == report.grad_norm


def digest(ranks: Ranks) -> str:
    parts = [ranks.gathered("param", k).tobytes() for k in range(len(ranks.opt.names))]
    for k, tensor in enumerate(ranks.opt._all_tensors()):
        for kind in STATES:
            if getattr(tensor, kind) is not None:
                parts.append(ranks.gathered(kind, k).tobytes())
    return hashlib.sha256(b"".join(parts)).hexdigest()


EXACT_CUTS = {
    MATRIX: [c for s, c in CUTS.values() if s == MATRIX],
    BATCH: [c for s, c in CUTS.values() if s == BATCH],
    VECTOR: [cuts("elements", VECTOR, edges, 0) for edges in ([], [7], [1024, 3001])],
}


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("convention", ["numpy", "direct", "torch", "optax", "clipped by norm"])
@pytest.mark.parametrize("shape", EXACT_CUTS)
def test_exact_sums_give_one_hash(shape: tuple[int, ...], convention: str, dtype: str) -> None:
    hashes = set()
    reports = set()
    for cut in EXACT_CUTS[shape]:
        param = np.random.default_rng(5).standard_normal(shape).astype(dtype)
        opt = optimizer({"w": param}, **CONVENTIONS[convention])
        axes = opt.tensors[0].axes
        if cut.layout == "flat" and axes is not None and axes[0] > axes[1]:
            continue
        ranks = Ranks(opt, {"w": cut}, len(cut.by_rank), exact=True)
        for grad in gradients(shape, 2, 6):
            results = ranks.step([grad.astype(dtype)])
            for result in results:
                if isinstance(result, Exception):
                    raise result
                reports.add(result[0].tobytes())
        assert len(ranks.exchanges) <= (8 if convention == "clipped by norm" else 4)
        hashes.add(digest(ranks))
    assert len(hashes) == 1
    assert len(reports) == 2


@pytest.mark.parametrize("cut", ["rows", "columns, one empty", "grid", "flat", "vector"])
def test_exact_sums_are_those_of_one_process(cut: str) -> None:
    shape, by_rank = CUTS[cut]
    param = np.random.default_rng(7).standard_normal(shape)
    opt = Optimizer({"w": param})
    ranks = Ranks(opt, {"w": by_rank}, len(by_rank.by_rank), exact=True)
    for grad in gradients(shape, 3, 8):
        ranks.step([grad])
        opt.step([grad])
    np.testing.assert_allclose(ranks.gathered("param", 0), param, rtol=0, atol=1e-13)


@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("cut", ["rows", "columns, one empty", "grid", "flat", "vector"])
def test_random_bits_go_by_the_place_in_the_whole_tensor(cut: str, momentum: float | None) -> None:
    # Without a step's own move the bits alone decide what a param becomes.
    shape, by_rank = CUTS[cut]
    grads = [np.round(g * 64).astype(np.float32) for g in gradients(shape, 3, 9, 1)]
    hashes = set()
    whole = [(0, n) for n in shape]
    alone = Cut("elements" if len(shape) == 1 else "rows", [whole])
    for cut_as in (by_rank, alone):
        param = np.random.default_rng(10).standard_normal(shape).astype(np.float16)
        settings = {} if momentum is None else {"beta1": momentum, "momentum_dtype": "bfloat16"}
        opt = optimizer({"w": param}, rounding="stochastic", **settings)
        ranks = Ranks(opt, {"w": cut_as}, len(cut_as.by_rank), exact=True)
        for grad in grads:
            ranks.step([grad])
        hashes.add(digest(ranks))
    assert len(hashes) == 1


def test_stochastic_rounding_is_that_of_one_process() -> None:
    param = np.random.default_rng(11).standard_normal((512, 96)).astype(np.float16)
    opt = optimizer({"w": param}, rounding="stochastic")
    cut = cuts("rows", param.shape, [64, 320], 0)
    ranks = Ranks(opt, {"w": cut}, 3)
    for grad in gradients(param.shape, 3, 12, 64):
        ranks.step([grad.astype(np.float16)])
        opt.step([grad.astype(np.float16)])
        np.testing.assert_array_equal(ranks.gathered("param", 0), param)


SMALL, NARROW, TWO, COLUMN = (24, 7, 9), (343, 2), (8, 10), (90, 1)
NUMBERED = {
    **CUTS,
    "small: rows": (SMALL, cuts("rows", SMALL, [2], 1)),
    "small: columns": (SMALL, cuts("cols", SMALL, [1, 5], 2)),
    "small: boxes": (SMALL, cuts("grid", SMALL, [3, 17], 0)),
    "small: flat": (SMALL, flat(SMALL, [100, 101, 777])),
    "columns of one element": (TWO, cuts("cols", TWO, [1, 9], 1)),
    "rows of one element": (TWO, cuts("rows", TWO, [1, 7], 0)),
    "boxes of one column": (NARROW, grid(NARROW, [314, 335], [1])),
    "flat boxes of one column": (NARROW, flat(NARROW, [1, 601])),
    "a column": (COLUMN, cuts("rows", COLUMN, [1, 70], 0)),
}


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("cut", "axes"),
    [
        (name, axes)
        for name, (shape, cut) in NUMBERED.items()
        for axes in ("last_two", "two_largest", "none")
        if axes != "two_largest" or (shape != SMALL and not cut.is_flat)
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_random_bits_are_those_of_one_process(
    order: Literal["C", "F"], cut: str, axes: str, exact: bool
) -> None:
    """Params that do not move: what their copies are rounded to is up to the bits alone."""
    shape, by_rank = NUMBERED[cut]
    param = np.random.default_rng(14).standard_normal(shape).astype(np.float32)
    copies = {"w": param.astype(ml_dtypes.bfloat16)}
    opt = optimizer({"w": param}, lr=0.0, rounding="stochastic", copies=copies, factored_axes=axes)
    layout = by_rank.layout
    if opt.tensors[0].axes is None:
        layout = "flat elements" if by_rank.is_flat else "elements"
    by_rank = Cut(layout, by_rank.by_rank, order=order)
    ranks = Ranks(opt, {"w": by_rank}, len(by_rank.by_rank), exact)
    grad = gradients(shape, 1, 15)[0].astype(np.float32)
    for _ in range(2):
        ranks.step([grad])
        opt.step([grad])
        assert (copies["w"] != param.astype(ml_dtypes.bfloat16)).any()
        assert ranks.gathered("copy", 0).tobytes() == copies["w"].tobytes()


def model(nonfinite: str = "raise") -> tuple[Optimizer, Ranks]:
    rng = np.random.default_rng(13)
    params = {"w": rng.standard_normal(MATRIX), "b": rng.standard_normal(VECTOR)}
    opt = Optimizer(params, nonfinite=nonfinite)
    cut_of = {"w": CUTS["grid"][1], "b": CUTS["vector"][1]}
    return opt, Ranks(opt, cut_of, 4)


def everything(ranks: Ranks) -> list[bytes]:
    arrays = []
    for rank in ranks.tensors:
        for tensor in rank:
            for kind in ("param", *STATES):
                array = getattr(tensor, kind)
                if array is not None:
                    arrays.append(array.tobytes())
    return arrays


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200])
def test_a_bad_gradient_on_one_rank_raises_alike_on_all(bad: float) -> None:
    _, ranks = model()
    grads = [gradients(MATRIX, 1, 14)[0], gradients(VECTOR, 1, 15)[0]]
    ranks.step(grads)
    before = everything(ranks)
    grads[0][120, 50] = bad
    grads[0][240, 3] = np.nan
    results = ranks.step(grads)
    texts = {str(result) for result in results}
    assert len(texts) == 1
    (text,) = texts
    assert all(isinstance(result, FloatingPointError) for result in results)
    assert text.startswith(f"grads['w'][120, 50] is {bad}, ")
    assert text.endswith("nothing was changed")
    assert everything(ranks) == before
    assert {m.t for m in ranks.models} == {1}


def test_a_skipped_step_counts_on_all_ranks() -> None:
    _, ranks = model("skip")
    grads = [gradients(MATRIX, 1, 16)[0], gradients(VECTOR, 1, 17)[0]]
    grads[1][4000] = np.nan
    before = everything(ranks)
    ranks.step(grads)
    assert everything(ranks) == before
    assert {(m.t, m.skipped) for m in ranks.models} == {(0, 1)}


def test_abandoned_at_any_exchange_nothing_is_changed() -> None:
    opt, ranks = model()
    grads = [gradients(MATRIX, 1, 18)[0], gradients(VECTOR, 1, 19)[0]]
    before = everything(ranks)
    for number in range(4):
        ranks.stops = partial(eq, number)
        assert ranks.step(grads) == []
        assert everything(ranks) == before
        assert {m.t for m in ranks.models} == {0}
    ranks.stops = lambda done: False
    ranks.step(grads)
    opt.step(grads)
    np.testing.assert_allclose(ranks.gathered("param", 0), opt.params["w"], rtol=0, atol=1e-13)


def test_steps_of_parts_are_begun_by_begin_sharded_step_only() -> None:
    opt, ranks = model()
    plan = opt._new_plan()
    one = ranks.models[0]
    grads = [np.ones_like(t.param) for t in ranks.tensors[0]]
    with pytest.raises(ValueError, match=r"params\['w'\] is a part of a tensor"):
        one.step(plan, grads, 1.0, lambda *arrays: arrays, lambda position: None)
    step = one.begin_sharded_step(plan, grads, 1.0, lambda *a: a, lambda position: None, 0, 0)
    with pytest.raises(RuntimeError, match="another thread"):
        one.mute_round(plan, 0)
    with pytest.raises(ValueError, match="exchanges left"):
        step.apply()
    step.abandon()
    with pytest.raises(ValueError, match="over"):
        step.next_exchange()
    assert one.mute_round(plan, 3).size > 3


@pytest.mark.parametrize("layout", ["rows", "batch", "grid", "flat"])
def test_a_rank_without_elements_gives_what_the_others_give(layout: str) -> None:
    rng = np.random.default_rng(22)
    shape = (3, 128, 40) if layout == "batch" else (128, 40)
    opt = Optimizer({"w": rng.standard_normal(shape)})
    cut = cuts(layout, shape, [shape[0]], 0)
    if layout == "flat":
        cut = Cut(layout, [[(0, 5120)], [(5120, 5120)]])
    ranks, beside = Ranks(opt, {"w": cut}, 2), Ranks(opt, {"w": cut}, 2)
    for grad in (rng.standard_normal(shape), None):
        pieces = [None if grad is None else cut.of(grad, 0), None]
        steps = [
            m.begin_sharded_step(
                opt._new_plan(), [piece], 1.0, lambda *a: a, lambda position: None, 0, 0
            )
            for m, piece in zip(ranks.models, pieces)
        ]
        exchange(steps)
        for step in steps:
            step.apply()
        beside.step([grad])
        assert [m.counts().tolist() for m in ranks.models] == [[1], [1]]
        assert [m.t for m in ranks.models] == [1 if grad is not None else 2] * 2
        assert everything(ranks) == everything(beside)


def test_a_rank_without_elements_goes_by_the_dtype_of_the_others_gradients() -> None:
    rng = np.random.default_rng(23)
    shape = (128, 40)
    # This eps is lost beside float32's roots of the second moment, and not beside float64's.
    opt = Optimizer(
        {"w": rng.standard_normal(shape).astype(np.float32)}, eps_mode="both", eps=1e-12
    )
    ranks = Ranks(opt, {"w": cuts("rows", shape, [128], 0)}, 2)
    plan, grad = opt._new_plan(), rng.standard_normal(shape)
    steps = [
        m.begin_sharded_step(plan, [piece], 1.0, lambda *a: a, lambda position: None, 0, 0)
        for m, piece in zip(ranks.models, (grad, None))
    ]
    assert [op for op, _ in exchange(steps)] == ["max", "sum", "max", "sum"]
    for step in steps:
        step.apply()
    opt.step([grad])
    np.testing.assert_allclose(ranks.gathered("param", 0), opt.params["w"], rtol=1e-6)


def test_tensors_are_all_parts_or_all_whole() -> None:
    opt, ranks = model()
    part, (whole, *_) = ranks.tensors[0][0], opt._all_tensors()
    for first, second in ((part, whole), (whole, part)):
        both = _core.Tensors()
        both.add([[first]])
        with pytest.raises(ValueError, match="must both be parts of tensors, or both be whole"):
            both.add([[second]])
    both = _core.Tensors()
    both.add([[whole]])
    plan = opt._new_plan()
    with pytest.raises(ValueError, match="is a whole tensor, must be a part"):
        both.begin_sharded_step(plan, [None], 1.0, lambda *a: a, lambda position: None, 0, 0)
    with pytest.raises(ValueError, match="is a whole tensor, must be a part"):
        both.mute_round(plan, 0)


@pytest.mark.parametrize(
    ("start", "layout", "text"),
    [
        ((0, 5), "rows", "whole rows"),
        ((250, 0), "grid", "within"),
        ((0,), "grid", "flat"),
        ((0, 0), "elements", "not factored"),
        ((0, 0), "stripes", "layout is"),
    ],
)
def test_a_wrong_part_is_refused(start: tuple[int, ...], layout: str, text: str) -> None:
    _, ranks = model()
    piece = ranks.tensors[0][0]
    with pytest.raises(ValueError, match=text):
        piece.part = _core.Part(MATRIX, start, layout)
        _core.Tensors().add([[piece]])


def test_exchanges_are_as_many_for_a_model_as_for_a_tensor() -> None:
    rng = np.random.default_rng(20)
    shapes = [(128, 40)] * 20 + [(30,)] * 9
    params = {str(k): rng.standard_normal(s) for k, s in enumerate(shapes)}
    opt = Optimizer(params)
    cut_of = {
        str(k): cuts("rows" if len(s) == 2 else "elements", s, [s[0] // 2], 0)
        for k, s in enumerate(shapes)
    }
    ranks = Ranks(opt, cut_of, 2)
    ranks.step([rng.standard_normal(s) for s in shapes])
    assert [op for op, _ in ranks.exchanges] == ["max", "sum"]


def test_a_measured_gradient_is_taken_over() -> None:
    rng = np.random.default_rng(21)
    shape = (256, 100)
    param, grad = rng.standard_normal(shape), rng.standard_normal(shape)
    opt = Optimizer({"w": param})
    cut = cuts("rows", shape, [128], 0)
    ranks, beside = Ranks(opt, {"w": cut}, 2), Ranks(opt, {"w": cut}, 2)
    plan = opt._new_plan()
    held = [cut.of(grad, rank) for rank in range(2)]
    for model_, piece in zip(ranks.models, held):
        model_.measure(plan, 0, piece, None, lambda position: None, False)
    steps = [
        m.begin_sharded_step(plan, [None], 1.0, lambda *a: a, lambda position: None, 0, 0)
        for m in ranks.models
    ]
    exchange(steps)
    for step in steps:
        step.apply()
    beside.step([grad])
    np.testing.assert_array_equal(ranks.gathered("param", 0), beside.gathered("param", 0))
    assert not any(m.has_measured for m in ranks.models)


@pytest.mark.parametrize("nonfinite", ["raise", "propagate"])
def test_tensors_without_elements_and_infinite_gradients_are_as_in_one_process(
    nonfinite: str,
) -> None:
    """Reports of nothing are nan, the norm goes by the rest; an infinity is no nan."""
    shapes = [(0, 64), (300, 64), (3, 200, 100), (97,)]
    rng = np.random.default_rng(24)
    params = {str(k): rng.standard_normal(shape) for k, shape in enumerate(shapes)}
    opt = Optimizer(params, nonfinite=nonfinite)
    cut_of = {
        "0": cuts("batch", shapes[0], [0], 0),
        "1": cuts("rows", shapes[1], [128], 0),
        "2": cuts("batch", shapes[2], [1], 0),
        "3": cuts("elements", shapes[3], [97], 0),
    }
    ranks = Ranks(opt, cut_of, 2)
    grads = [rng.standard_normal(shape) for shape in shapes]
    if nonfinite == "propagate":
        for grad in grads[1:]:
            grad[(0,) * grad.ndim] = np.inf
    with np.errstate(invalid="ignore"):
        (numbers, norms, *_), _ = ranks.step(grads)
        report = opt.step(grads)
    np.testing.assert_allclose(norms[0], report.grad_norm)
    names = ("rms_grad", "rms_u", "clip_divisor", "rms_param", "step_size")
    np.testing.assert_allclose(numbers, np.transpose([getattr(report, name) for name in names]))
    for k in range(len(shapes)):
        np.testing.assert_allclose(ranks.gathered("param", k), params[str(k)], atol=1e-13)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("cut", CUTS)
def test_gradients_whose_u_has_no_square_before_it_is_scaled(cut: str, exact: bool) -> None:
    shape, by_rank = CUTS[cut]
    param = np.random.default_rng(1).standard_normal(shape)
    settings = {"lr": 0.1, "beta2": 0.99999, "max_grad_norm": 1.0}
    opt = optimizer({"w": param}, "numpy", **settings)
    ranks = Ranks(opt, {"w": by_rank}, len(by_rank.by_rank), exact=exact)
    for grad in gradients(shape, 3, 2, over=10.0):
        before = param.copy()
        grad = grad * (3e151 / np.linalg.norm(grad))
        results = ranks.step([grad])
        for result in results:
            assert not isinstance(result, Exception)
        report = opt.step([grad])
        assert report.stepped.all()
        moved = param - before
        assert np.abs(moved).max() > 1e-3
        np.testing.assert_allclose(
            ranks.gathered("param", 0) - before, moved, rtol=1e-8, atol=1e-12
        )
        np.testing.assert_allclose(results[0][0][0][0], report["w"]["rms_grad"], rtol=1e-9)


@pytest.mark.parametrize("cut", [name for name, (shape, _) in CUTS.items() if shape == MATRIX])
def test_rms_u_that_nothing_needs_is_not_reported(cut: str) -> None:
    shape, by_rank = CUTS[cut]
    for eps, is_reported in ((1e-30, True), (1e-3, False)):
        param = np.random.default_rng(18).standard_normal(shape)
        opt = optimizer({"w": param}, "numpy", eps=eps, clip_threshold=None)
        ranks = Ranks(opt, {"w": by_rank}, len(by_rank.by_rank))
        grad = gradients(shape, 1, 19)[0]
        rms_u = ranks.step([grad])[0][0][0][1]
        assert np.isnan(opt.step([grad])["w"]["rms_u"]) != is_reported
        assert np.isnan(rms_u) != is_reported


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("cut", [name for name, (shape, _) in CUTS.items() if shape == MATRIX])
def test_zero_by_zero_propagates_as_in_one_process(cut: str, exact: bool) -> None:
    shape, by_rank = CUTS[cut]
    param = np.random.default_rng(16).standard_normal(shape)
    opt = optimizer({"w": param}, eps=0.0, nonfinite="propagate")
    ranks = Ranks(opt, {"w": by_rank}, len(by_rank.by_rank), exact)
    grad = gradients(shape, 1, 17)[0]
    grad[125] = 0  # on one rank, not the first
    with np.errstate(all="ignore"):
        numbers = ranks.step([grad])[0][0][0]
        report = opt.step([grad])
    names = ("rms_grad", "rms_u", "clip_divisor", "rms_param", "step_size")
    np.testing.assert_allclose(numbers, [report["w"][name] for name in names], rtol=1e-9)
    assert np.isnan(report["w"]["rms_u"])
    np.testing.assert_array_equal(np.isnan(ranks.gathered("param", 0)), np.isnan(param))


@pytest.mark.parametrize("cut", CUTS)
def test_a_state_that_holds_clipped_gradients_only(cut: str) -> None:
    """A fault that only unscaled gradients have is none where they are scaled; else all have it."""
    shape, by_rank = CUTS[cut]
    for limit in (1.0, 1e38):
        param = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        opt = optimizer({"w": param}, "numpy", lr=0.1, state_dtype="float32", max_grad_norm=limit)
        ranks = Ranks(opt, {"w": by_rank}, len(by_rank.by_rank))
        grad = (1e30 * gradients(shape, 1, 2, over=10.0)[0]).astype(np.float32)
        results = ranks.step([grad])
        if limit == 1.0:
            assert opt.step([grad]).stepped.all()
            np.testing.assert_allclose(ranks.gathered("param", 0), param, rtol=1e-5, atol=1e-6)
        else:
            with pytest.raises(FloatingPointError, match="float32"):
                opt.step([grad])
            assert all(isinstance(result, FloatingPointError) for result in results)
