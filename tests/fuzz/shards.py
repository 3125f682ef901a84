"""Steps any model in pieces, ranks in one process: what one process does, and nothing where there is a fault.

    python tests/fuzz/shards.py --seconds 60              with a seed that is printed
    python tests/fuzz/shards.py --seed 5 --seconds 3600   from model 0 of that seed on
    python tests/fuzz/shards.py --seed 5 --model 77       the one that a failure names

A model is drawn from the seed and its number (`shard_models.py`): shapes, dtypes, conventions and switches, momentum,
masters, copies, clipping; of each tensor its own cut over 1 to 5 ranks: rows, columns, any boxes, ranges of
elements, whole matrices, replicas, all on one rank, empty pieces; numbers that are not finite, gradients
that are missing on all ranks or on one. Ranks are those of `sharded_ranks.py`. Beside them one process steps
the whole: params, state and reports must be the same to rounding, to the bit where tensors are cut
between panels, and to the bit for every cut with exact sums. All ranks must say the same; by an
error or a step that is left out no byte of any rank may change.

Counted are steps of tensors, on all ranks together.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from fuzz.driver import Tally, main_loop
from fuzz.runs import Fault
from fuzz.shard_models import Drawn, draw, way_of
from fuzz.truth import EPS
from sharded_ranks import Ranks

STATES = ("exp_row", "exp_col", "v", "m", "master", "low", "copy")
REPORTED = ("rms_grad", "rms_u", "clip_divisor", "rms_param", "step_size")
LEFT_OUT = 3  # of a step's flags: it was skipped, or a spike
BETWEEN_GROUPS = "must be cut between groups"

# What a control breaks, to show that it would be seen: called after each step of the ranks.
Spoil = Callable[[Ranks, int], None]


def everything(ranks: Ranks) -> list[bytes]:
    """All that a step may write, of all ranks."""
    kept = [m.counts().tobytes() + bytes(str((m.t, m.skipped)), "ascii") for m in ranks.models]
    for tensor in (tensor for rank in ranks.tensors for tensor in rank):
        arrays = (getattr(tensor, kind) for kind in ("param", *STATES))
        kept += [array.tobytes() for array in arrays if array is not None]
    return kept


def said_of(result: Any) -> Any:
    """What a rank says of a step, to be compared."""
    if isinstance(result, Exception):
        return f"{type(result).__name__}: {result}"
    return [np.asarray(part).tobytes() for part in result]


class Pair:
    """A model in pieces beside one process, which steps by fast sums, or as a single rank by exact ones."""

    def __init__(self, model: Drawn, tally: Tally) -> None:
        self.model, self.tally = model, tally
        self.opt = model.optimizer()
        tensors = self.opt._all_tensors()
        aligned = model.sums == "aligned"
        rule = self.opt.param_groups[0].rule
        self.ways = [way_of(model.rng, t, rule, model.n_ranks, aligned) for t in tensors]
        cut_of = {t.name: way.cut for t, way in zip(tensors, self.ways)}
        self.exact = model.sums == "exact"
        self.ranks = Ranks(self.opt, cut_of, model.n_ranks, self.exact)
        self.alone: Ranks | None = None
        if self.exact:
            whole = {t.name: way_of(model.rng, t, rule, 1, True).cut for t in tensors}
            self.alone = Ranks(self.opt, whole, 1, True)
        narrow = all(
            array.dtype != np.float64
            for t, grads in zip(tensors, zip(*model.values))
            for array in (t.param, *grads)
            if array is not None
        )
        # Where tensors of float64 stand beside narrower ones, or wide gradients, norms are not exact.
        by_norm = "max_grad_norm" in model.settings
        self.keeps_bits = [
            way.keeps_bits and (narrow or (way.how != "panels" and not by_norm))
            for way in self.ways
        ]

    def step(self, k: int, spoil: Spoil | None) -> None:
        model, ranks = self.model, self.ranks
        grads = model.values[k]
        if k in model.withheld:
            self._withhold(k, model.withheld[k])
        before = everything(ranks)
        with np.errstate(all="ignore"):
            results = ranks.step(grads, model.grad_scale)
            if spoil is not None:
                spoil(ranks, k)
            after = everything(ranks)
            said = [said_of(result) for result in results]
            if any(each != said[0] for each in said):
                raise Fault(f"step {k}: ranks say otherwise: {results}")
            expected = self._step_alone(grads)
        self._require_equal_replicas(k)
        if {m.t for m in ranks.models} != {self._t_alone()}:
            raise Fault(f"step {k}: t is {[m.t for m in ranks.models]}, of one {self._t_alone()}")
        if isinstance(results[0], Exception) != isinstance(expected, Exception):
            raise Fault(f"step {k}: ranks {results[0]!r}, one process {expected!r}")
        n = sum(grad is not None for grad in grads) * ranks.n
        if isinstance(expected, Exception):
            self.tally.left_out += n
            texts = [str(results[0]), str(expected)]
            if model.settings.get("masters") == "float32":  # whose number it is may be a master's
                texts = [text.split(" is ")[0] for text in texts]
            # Of boxes lines of zeros are found in the second exchange, after other tensors' faults.
            is_late = all("the update would not be finite" in text for text in texts)
            if texts[0] != texts[1] and not is_late:
                raise Fault(f"step {k}: ranks say {results[0]}, one process {expected}")
        if isinstance(expected, Exception) or results[0][5] & LEFT_OUT:
            if before[ranks.n :] != after[ranks.n :]:
                raise Fault(f"step {k}: a step that is left out has changed arrays: {results[0]}")
        else:
            self.tally.steps += n
        if len(ranks.exchanges or ()) > 2 * self._most_rounds():
            raise Fault(f"step {k}: {ranks.exchanges}")
        if self.exact:
            self._compare_exact(k, results[0], expected)
        elif not isinstance(expected, Exception):
            self._compare(k, results[0], expected)

    def _most_rounds(self) -> int:
        return 6 if self.exact else 5

    def _require_equal_replicas(self, k: int) -> None:
        for position, way in enumerate(self.ways):
            held: dict[Any, bytes] = {}
            for ranges, rank in zip(way.cut.by_rank, self.ranks.tensors):
                param = rank[position].param.tobytes()
                if held.setdefault(tuple(ranges), param) != param:
                    raise Fault(f"step {k}: replicas of {rank[position].name} differ")

    def _t_alone(self) -> int:
        return self.opt.t if self.alone is None else self.alone.models[0].t

    def _withhold(self, k: int, tensor: int) -> None:
        """One rank with elements gives no gradient: all refuse, and nothing changes."""
        ranks, grads = self.ranks, self.model.values[k]
        grad, cut = grads[tensor], self.ways[tensor].cut
        if grad is None or not grad.size:
            return
        having = [rank for rank in range(ranks.n) if cut.of(grad, rank).size]
        if len(having) < 2:
            return
        before = everything(ranks)
        ranks.withholds = lambda rank, k: (rank, k) == (having[0], tensor)
        try:
            said = {said_of(result) for result in ranks.step(grads, self.model.grad_scale)}
        finally:
            ranks.withholds = lambda rank, k: False
        if len(said) != 1 or "None on some ranks" not in said.pop():
            raise Fault(f"step {k}: a gradient that one rank withholds: {said}")
        if everything(ranks) != before:
            raise Fault(f"step {k}: a gradient that one rank withholds has changed arrays")

    def _step_alone(self, grads: list[Any]) -> Any:
        if self.alone is not None:
            (result,) = self.alone.step(grads, self.model.grad_scale)
            return result
        try:
            return self.opt.step(dict(zip(self.opt.names, grads)), self.model.grad_scale)
        except FloatingPointError as error:
            return error

    def _compare_exact(self, k: int, result: Any, expected: Any) -> None:
        assert self.alone is not None
        if said_of(result) != said_of(expected):
            raise Fault(f"step {k}: exact sums: ranks {result}, one {expected}")
        for position, tensor in enumerate(self.opt._all_tensors()):
            for kind in ("param", *STATES):
                if getattr(tensor, kind) is None or tensor.param.size == 0:
                    continue
                mine = self.ranks.gathered(kind, position)
                if mine.tobytes() != self.alone.gathered(kind, position).tobytes():
                    way = self.ways[position].how
                    raise Fault(f"step {k}: exact sums: {kind} of {tensor.name} ({way}) differs")

    def _compare(self, k: int, result: Any, report: Any) -> None:
        numbers, (norm, _), stepped, _, _, left_out = result
        names = report.names
        norm_is_same = all(self.keeps_bits)
        if not same(norm, report.grad_norm, 0 if norm_is_same else 1e-6):
            raise Fault(f"step {k}: grad_norm is {norm!r}, must be {report.grad_norm!r}")
        if not np.array_equal(stepped, report.stepped):
            raise Fault(f"step {k}: stepped {stepped}, one process {report.stepped}")
        goes_by_norm = {"max_grad_norm", "skip_above"} & self.model.settings.keys()
        for position, tensor in enumerate(self.opt._all_tensors()):
            way = self.ways[position]
            to_the_bit = self.keeps_bits[position] and (norm_is_same or not goes_by_norm)
            where = f"step {k}: {tensor.name} {tensor.param.shape} {tensor.param.dtype} {way.how}"
            # Of a step that is left out some numbers are not computed.
            for number, name in zip(numbers[position], () if left_out & LEFT_OUT else REPORTED):
                expected = getattr(report, name)[names.index(tensor.name)]
                if not same(number, expected, 0 if to_the_bit else self._tolerance(tensor)):
                    raise Fault(f"{where}: {name} is {number!r}, must be {expected!r}")
            self._compare_arrays(where, position, tensor, to_the_bit)
            self.tally.compared += 1

    def _tolerance(self, tensor: Any) -> float:
        """Of a report's numbers: params of halves may have been rounded otherwise before."""
        return 2e-5 + (0 if self.opt.t == 1 else 2 * EPS[tensor.param.dtype.name])

    def _compare_arrays(self, where: str, position: int, tensor: Any, to_the_bit: bool) -> None:
        for kind in ("param", *STATES):
            own = getattr(tensor, kind)
            if own is None or tensor.param.size == 0:
                continue
            mine = self.ranks.gathered(kind, position)
            if to_the_bit:
                if mine.tobytes() != np.ascontiguousarray(own).tobytes():
                    raise Fault(f"{where}: {kind} differs in bits")
                continue
            if kind == "low":
                continue  # a part of a number whose upper half is the param
            one, other = mine.astype(np.float64), own.astype(np.float64)
            is_well = np.isfinite(other)
            if (np.isfinite(one) != is_well).any():
                raise Fault(f"{where}: {kind} is not finite elsewhere")
            off = np.abs(one[is_well] - other[is_well]).max(initial=0)
            scale = np.abs(other[is_well]).max(initial=0)
            roundings = self.opt.t  # each step may round otherwise
            most = (1e-5 + 1.01 * roundings * EPS.get(own.dtype.name, 0)) * scale + 1e-38
            if not off <= most:
                raise Fault(f"{where}: {kind} is off by {off:.3g}, at most {most:.3g}")


def same(mine: float, expected: float, tolerance: float) -> bool:
    if not np.isfinite(mine) and not np.isfinite(expected):
        return True  # which of them a sum of infinities is depends on their order
    if np.isnan(mine) or np.isnan(expected) or not tolerance:
        return np.array_equal(mine, expected, equal_nan=True)
    return mine == expected or abs(mine - expected) <= tolerance * abs(expected)


def run_model(model: Drawn, tally: Tally, spoil: Spoil | None = None) -> None:
    """Take the steps in pieces and in one; raise Fault for what must not be."""
    pair = Pair(model, tally)
    for k in range(len(model.values)):
        try:
            pair.step(k, spoil)
        except ValueError as error:
            if BETWEEN_GROUPS not in str(error):
                raise
            tally.left_out += 1
            return


def try_model(
    seed: int,
    number: int,
    tally: Tally,
    tensors: list[str] | None = None,
    steps: int | None = None,
) -> None:
    model = draw(seed, number)
    model.keep(tensors, steps)
    run_model(model, tally)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tensors", type=lambda text: text.split(","), help="only these, by name")
    parser.add_argument("--steps", type=int, help="only so many steps")
    main_loop(parser, "shards.py", try_model)


if __name__ == "__main__":
    main()
