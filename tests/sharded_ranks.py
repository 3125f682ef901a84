"""Ranks of a sharded step in one process: the model of an `Optimizer` cut to pieces.

Each rank has a native `Tensors` of its own with copies of its pieces; `step` drives all of them and
reduces their arrays by NumPy. Of adafactor_native.sharding only what it tells of groups takes part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from adafactor_native import Optimizer
from adafactor_native._runtime import _core
from adafactor_native.sharding.pieces import Box, FlatRange
from adafactor_native.sharding.tensor_shard import TensorShard

Array = npt.NDArray[Any]
Ranges = Sequence[tuple[int, int]]  # of each axis; of a flat range the one of its elements


class Cut:
    """How a tensor is cut: a layout, the ranges of each rank, in which order params lie."""

    def __init__(
        self,
        layout: str,
        by_rank: Sequence[Ranges],
        speaks: Sequence[bool] | None = None,
        order: Literal["C", "F"] = "C",
    ):
        self.order: Literal["C", "F"] = order
        self.layout = layout
        self.by_rank = by_rank
        self.speaks = speaks or [True] * len(by_rank)

    def of(self, array: Array, rank: int, axes: Sequence[int] | None = None) -> Array:
        """Return a copy of the rank's piece of an array that has these axes of the tensor."""
        ranges = self.by_rank[rank]
        if self.is_flat:
            return array.reshape(-1)[slice(*ranges[0])].copy()
        axes = range(array.ndim) if axes is None else axes
        return array[tuple(slice(*ranges[axis]) for axis in axes)].copy()

    def put(self, whole: Array, rank: int, piece: Array) -> None:
        ranges = self.by_rank[rank]
        if self.is_flat:
            whole.reshape(-1)[slice(*ranges[0])] = piece
        else:
            whole[tuple(slice(*r) for r in ranges)] = piece

    @property
    def is_flat(self) -> bool:
        return self.layout == "flat" or self.layout == "flat elements"


def cuts(layout: str, shape: tuple[int, ...], edges: Sequence[int], axis: int) -> Cut:
    """Cut one axis at these edges, the rest whole."""
    ends = [*edges, shape[axis]]
    starts = [0, *edges]
    whole = [(0, n) for n in shape]
    return Cut(
        layout,
        [[*whole[:axis], (a, b), *whole[axis + 1 :]] for a, b in zip(starts, ends)],
    )


class Ranks:
    """The ranks of `opt`, whose tensors are cut by `cuts`, in order."""

    def __init__(
        self,
        opt: Optimizer,
        cut_of: dict[str, Cut],
        n_ranks: int,
        exact: bool = False,
        groups: bool = False,
    ) -> None:
        self.opt = opt
        self.groups: list[list[tuple[int, ...]]] | None = None
        if groups:
            everyone = tuple(range(n_ranks))
            shards = [
                [self._shard(t, cut_of[t.name], rank) for t in opt._all_tensors()]
                for rank in range(n_ranks)
            ]
            sets = [
                {lines.ranks for shard in own for lines in shard.shared_lines or ()}
                for own in shards
            ]
            self.groups = [[everyone, *sorted(own - {everyone})] for own in sets]
        self.exact = exact
        self.cut_of = cut_of
        self.n = n_ranks
        self.tensors = []
        self.models = []
        self.stops: Callable[[int], bool] = lambda number: False  # abandons at this exchange
        self.withholds: Callable[[int, int], bool] = lambda rank, k: False  # tensor k's gradient
        for rank in range(n_ranks):
            groups = [[self._piece(t, rank) for t in group.tensors] for group in opt.param_groups]
            model = _core.Tensors()
            model.add(groups)
            model.set_counts(opt.t, opt.skipped, [int(x) for x in opt.counts])
            self.models.append(model)
            self.tensors.append([t for group in groups for t in group])

    def _piece(self, tensor: Any, rank: int) -> SimpleNamespace:
        cut = self.cut_of[tensor.name]
        shape = tensor.param.shape
        ranges = cut.by_rank[rank]
        whole = tuple(range(len(shape)))
        piece = SimpleNamespace(name=tensor.name, decays=tensor.decays, axes=None)
        for kind in ("param", "m", "master", "low", "copy"):
            array = getattr(tensor, kind)
            setattr(piece, kind, None if array is None else cut.of(array, rank))
        piece.param = piece.param.copy(cut.order)
        piece.exp_row = piece.exp_col = piece.v = None
        if tensor.axes is None:
            piece.v = cut.of(tensor.v, rank)
        else:
            row, col = tensor.axes
            piece.axes = (row, col)
            if cut.is_flat:
                start, end = ranges[0]
                rows, cols = shape[row], shape[col]
                lines = slice(start // cols, -(-end // cols) if end > start else start // cols)
                size = rows * cols
                matrices = slice(start // size, -(-end // size) if end > start else start // size)
                piece.exp_row = tensor.exp_row.reshape(-1)[lines].copy()
                piece.exp_col = tensor.exp_col.reshape(-1, cols)[matrices].copy()
            else:
                batch = [a for a in whole if a not in (row, col)]
                piece.exp_row = cut.of(tensor.exp_row, rank, [*batch, row])
                piece.exp_col = cut.of(tensor.exp_col, rank, [*batch, col])
        start = [a for a, _ in ranges]
        layout = "elements" if tensor.axes is None else cut.layout
        if tensor.axes is not None and tensor.axes[0] > tensor.axes[1]:
            layout = {"rows": "cols", "cols": "rows"}.get(layout, layout)
        shared = None
        if self.groups is not None:
            lines = self._shard(tensor, cut, rank).shared_lines
            numbers = {ranks: k for k, ranks in enumerate(self.groups[rank])}
            if lines is not None:
                shared = [(x.are_rows, numbers[x.ranks], x.begin, x.end) for x in lines]
        piece.part = _core.Part(shape, start, layout, cut.speaks[rank], shared)
        return piece

    @staticmethod
    def _shard(tensor: Any, cut: Cut, rank: int) -> TensorShard:
        pieces: list[Any] = []
        for ranges in cut.by_rank:
            start = tuple(a for a, _ in ranges)
            lengths = tuple(b - a for a, b in ranges)
            pieces.append(FlatRange(start[0], lengths[0]) if cut.is_flat else Box(start, lengths))
        return TensorShard(tensor.name, tensor.param.shape, pieces, rank, tensor.axes)

    def begin(self, grads: Sequence[Array | None], grad_scale: float = 1.0) -> list[Any]:
        plan = self.opt._new_plan()
        steps = []
        for rank, model in enumerate(self.models):
            pieces = [
                None if g is None or self.withholds(rank, k) else self.cut_of[name].of(g, rank)
                for k, (name, g) in enumerate(zip(self.opt.names, grads))
            ]
            steps.append(
                model.begin_sharded_step(
                    plan,
                    pieces,
                    grad_scale,
                    lambda *arrays: arrays,
                    lambda position: None,
                    n_header_max=2,
                    n_header_sum=1,
                    exact=self.exact,
                )
            )
        return steps

    def step(self, grads: Sequence[Array | None], grad_scale: float = 1.0) -> list[Any]:
        """Step all ranks; return each one's report arrays, or its error."""
        steps = self.begin(grads, grad_scale)
        self.exchanges = exchange(steps, self.stops, self.groups)
        if self.exchanges is None:
            for step in steps:
                step.abandon()
            return []
        results: list[Any] = []
        for step in steps:
            try:
                results.append(step.apply())
            except (FloatingPointError, ValueError) as error:
                results.append(error)
        return results

    def gathered(self, kind: str, k: int) -> Array:
        """Put a whole param, m, v, master, low or copy together, or exp_row or exp_col."""
        name = self.opt.names[k]
        cut = self.cut_of[name]
        tensor = self.opt._all_tensors()[k]
        whole = np.full_like(getattr(tensor, kind), 77)
        shape = tensor.param.shape
        for rank in range(self.n):
            piece = getattr(self.tensors[rank][k], kind)
            if tensor.param.size and not self.tensors[rank][k].param.size:
                continue  # who has nothing need not keep up lines of others
            if kind not in ("exp_row", "exp_col"):
                cut.put(whole, rank, piece)
            elif cut.is_flat:
                start, end = cut.by_rank[rank][0]
                row, col = tensor.axes
                size = shape[col] if kind == "exp_row" else shape[row] * shape[col]
                if end > start and kind == "exp_row":
                    whole.reshape(-1)[start // size : -(-end // size)] = piece
                elif end > start:  # columns of which it has no element are others'
                    matrices = slice(start // size, -(-end // size))
                    has = np.zeros((whole.size // shape[col], *shape[-2:]), bool)
                    has.reshape(-1)[start:end] = True
                    view = whole.reshape(-1, shape[col])[matrices]
                    np.copyto(view, piece, where=has[matrices].any(axis=1))
            else:
                row, col = tensor.axes
                axes = [a for a in range(len(shape)) if a not in (row, col)]
                axes.append(row if kind == "exp_row" else col)
                ranges = cut.by_rank[rank]
                whole[tuple(slice(*ranges[a]) for a in axes)] = piece
        return whole


def added(arrays: Sequence[Array]) -> Array:
    return sum(arrays, np.zeros(arrays[0].size))


def exchange(
    steps: Sequence[Any],
    stops: Callable[[int], bool] = lambda n: False,
    groups: Sequence[Sequence[tuple[int, ...]]] | None = None,
) -> Any:
    """Reduce all arrays; return [(op, length)] of those over all ranks, or None if it stopped before the end.

    `groups` are those of each rank, by its own numbers, all ranks being the first.
    """
    if groups is None:
        groups = [[tuple(range(len(steps)))]] * len(steps)
    done: list[tuple[str, int]] = []
    under_way: list[deque[tuple[tuple[int, ...], str, Array]]] = [deque() for _ in steps]
    while True:
        exchanges = [step.next_exchange() for step in steps]
        if exchanges[0] is None:
            assert all(each is None for each in exchanges)
            return done
        if stops(len(done)):
            return None
        for (messages, _), own, begun in zip(exchanges, groups, under_way):
            begun.extend((own[group], op, array) for array, op, group in messages)
        left = [n_over for _, n_over in exchanges]
        while any(left):
            # Some group has come to its message on all its ranks, or blocking engines would wait for ever.
            heads = {rank: under_way[rank][0] for rank, n in enumerate(left) if n}
            ranks, op, _ = next(
                (ranks, op, array)
                for ranks, op, array in heads.values()
                if all(other in heads and heads[other][0] == ranks for other in ranks)
            )
            arrays = [under_way[rank].popleft()[2] for rank in ranks]
            assert {heads[rank][1] for rank in ranks} == {op}
            assert len({array.size for array in arrays}) == 1
            total = np.max(arrays, axis=0) if op == "max" else added(arrays)
            for rank, array in zip(ranks, arrays):
                array[...] = total
                left[rank] -= 1
            if len(ranks) == len(steps):
                done.append((op, total.size))
