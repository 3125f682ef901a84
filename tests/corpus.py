"""The same bits as ever: hashes of all that steps change, for every path that a step can take.

    python tests/corpus.py              which problems differ from data/corpus.json
    python tests/corpus.py --everywhere the same on each instruction set, by each walk of rows, with
                                        1, 2, 3, 7 threads
    python tests/corpus.py --group NAME only the problems of a group (corpus_problems.GROUPS)
    python tests/corpus.py --write      writes data/corpus.json anew

ADAFACTOR_ISA chooses the instruction set otherwise. Write anew only where a result is to change,
and say in the commit which problems do, and why. What a problem is stands in corpus_problems.py.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

import adafactor_native as an
from buffers import Buffer
from corpus_problems import GROUPS, Problem, problems

KEPT = Path(__file__).parent / "data" / "corpus.json"
THREADS = (1, 2, 3, 7)
WALKS = ("side_by_side", "one_by_one")

Array = npt.NDArray[Any]

# As many as the significand of each has room for, so that no number is rounded.
BITS = {"float32": 20, "float64": 20, "float16": 11, "bfloat16": 8}


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


@functools.lru_cache(maxsize=256)
def drawn(shape: tuple[int, ...], seed: int, bits: tuple[int, ...]) -> tuple[Array, ...]:
    """Integers of so many bits and a sign, which every version of NumPy draws alike, as fractions.

    None is zero, for a step without eps refuses a gradient that never was anything else.
    """
    rng = np.random.default_rng(seed)
    integers = [rng.integers(-(2**n), 2**n, shape) for n in bits]
    return tuple(np.where(i == 0, 1, i) / 2.0**n for i, n in zip(integers, bits))


def dead_lines(values: Array, t: int) -> Array:
    return always_dead(values, t) if t == 2 else values


def always_dead(values: Array, t: int) -> Array:
    """Rows and columns of zeros, and of a batch whole matrices."""
    values = values.copy()
    if values.ndim:
        values[..., 2::5] = 0
    if values.ndim > 1:
        values[..., 1::3, :] = 0
    if values.ndim > 2:
        values[3::7] = 0
    return values


def apart(values: Array, axis: int) -> Array:
    """Values whose sizes run from 2**-83 to 2**83 along an axis."""
    if values.ndim == 0:
        return values
    axis = max(axis, -values.ndim)
    n = values.shape[axis]
    exponents = np.array([83 - 166 * k // max(n - 1, 1) for k in range(n)])
    along = [n if d == axis % values.ndim else 1 for d in range(values.ndim)]
    return np.ldexp(values, exponents.reshape(along))


def with_one(value: float) -> Callable[[Array, int], Array]:
    def put(values: Array, t: int) -> Array:
        values = values.copy()
        if (t == 2 and values.shape == (131, 77)) or (t == 3 and values.ndim == 4):
            values.flat[values.size // 2] = value
        return values

    return put


GRADS: dict[str, Callable[[Array, int], Array]] = {
    "plain": lambda values, t: values,
    "dead lines": dead_lines,
    "always dead": always_dead,
    "tiny": lambda values, t: values * 2.0**-83,
    "huge": lambda values, t: values * 2.0**83,
    "rows apart": lambda values, t: apart(values, -2),
    "columns apart": lambda values, t: apart(values, -1),
    "surge": lambda values, t: values * 2.0 ** (100 if t > 1 else 0),
    "flood": lambda values, t: values * 2.0 ** (490 if t > 1 else -83),
    "infinite": with_one(math.inf),
    "nan": with_one(math.nan),
}


class Run:
    """A problem's params, copies and gradients, in their layouts, and its steps.

    Attributes
    ----------
    numbers : list of ndarray
        What the steps reported of themselves.
    """

    def __init__(self, problem: Problem, threads: int) -> None:
        self.problem = problem
        self.params: list[Array] = []
        self.copies: list[Array | None] = []
        self.grads: list[list[Array | None]] = []  # by step, then by tensor
        by_tensor = []
        for seed, tensor in enumerate(problem.tensors):
            bits = (BITS[tensor.param], *[BITS[tensor.grad]] * problem.steps)
            param, *grads = drawn(tensor.shape, seed, bits)
            param = (param * problem.param_scale).astype(dtype_of(tensor.param))
            self.params.append(Buffer(param, tensor.layout).array)
            self.copies.append(
                Buffer(param.astype(dtype_of(tensor.copy)), tensor.layout).array
                if tensor.copy
                else None
            )
            shaped = (GRADS[problem.grads](g * 2.0**-10, t) for t, g in enumerate(grads, start=1))
            by_tensor.append(
                [Buffer(g.astype(dtype_of(tensor.grad)), tensor.grad_layout).array for g in shaped]
            )
        self.grads = [list(grads) for grads in zip(*by_tensor)]
        if problem.without is not None:
            self.grads[1][problem.without] = None
        self.numbers: list[Array] = []
        if problem.convention is None:
            self._steps_of_one_array(threads)
        else:
            self._steps_of_model(threads)

    def _steps_of_one_array(self, threads: int) -> None:
        (param,) = self.params
        opt = an.AdaFactor(param.shape, num_threads=threads, **self.problem.arguments)
        for t, (grad,) in enumerate(self.grads, start=1):
            opt.update(param, grad)
            if self._writes_after(t):
                opt.param_changed()
        self.states = [[x for x in (opt.exp_row, opt.exp_col, opt.v) if x is not None]]

    def _steps_of_model(self, threads: int) -> None:
        problem = self.problem
        opt = an.Optimizer(
            self.params,
            convention=problem.convention,
            copies=self.copies if any(c is not None for c in self.copies) else None,
            num_threads=threads,
            **problem.arguments,
        )
        for t, grads in enumerate(self.grads, start=1):
            with contextlib.suppress(FloatingPointError):
                report = opt.step(grads, problem.grad_scale)
                columns = (report.rms_grad, report.rms_u, report.clip_divisor)
                columns += (report.rms_param, report.step_size, report.stepped, report.grad_norm)
                self.numbers.extend(np.asarray(column, np.float64) for column in columns)
            if self._writes_after(t):
                opt.params_changed()
        self.numbers.append(np.array([opt.t, opt.skipped, *opt.counts], np.float64))
        self.states = [list(opt.state[name].values()) for name in opt.names]

    def _writes_after(self, t: int) -> bool:
        """Double params where the problem does; whether the optimizer is to be told."""
        if t != 2 or self.problem.written is None:
            return False
        for param in self.params:
            param *= 2
        return self.problem.written == "told"

    def arrays(self) -> Iterator[Array]:
        """Params, copies and state, tensor by tensor."""
        for param, copy, state in zip(self.params, self.copies, self.states):
            yield param
            if copy is not None:
                yield copy
            yield from state


def sha256(arrays: Iterator[Array]) -> str:
    """The beginning of the hash of arrays' elements in C order."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(array.tobytes())
    return sha.hexdigest()[:16]


def digests(problem: Problem, threads: int) -> dict[str, str]:
    """The hashes of a problem's arrays after its steps, and of what these reported."""
    run = Run(problem, threads)
    found = {"arrays": sha256(run.arrays())}
    if run.numbers:
        found["report"] = sha256(iter(run.numbers))
    return found


def threads_of(position: int) -> int:
    """The threads that a problem is run with where it is run once."""
    return THREADS[position % len(THREADS)]


def kept() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads(KEPT.read_text())
    return found


@contextlib.contextmanager
def walking(walk: str) -> Iterator[None]:
    """Force a walk of rows."""
    before = an._core.forced_walk()
    assert an._core.force_walk(walk)
    try:
        yield
    finally:
        an._core.force_walk(before)


def differing(every_way: bool = False, group: str = "") -> list[str]:
    """What differs from the hashes kept, of one group or all, with the instruction set that runs."""
    known, lines = kept(), []
    for position, (name, problem) in enumerate(problems().items()):
        if not name.startswith(group):
            continue
        ways = [(walk, threads) for walk in WALKS for threads in THREADS]
        for walk, threads in ways if every_way else [(WALKS[position % 2], threads_of(position))]:
            with walking(walk):
                found = digests(problem, threads)
            wrong = [what for what in found if found[what] != known.get(name, {}).get(what)]
            if wrong:
                lines.append(f"{name}, {threads} threads, {walk}: {' and '.join(wrong)}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the hashes anew")
    parser.add_argument(
        "--everywhere",
        action="store_true",
        help="every instruction set, walk of rows and number of threads",
    )
    parser.add_argument("--group", choices=[group.__name__ for group in GROUPS])
    arguments = parser.parse_args()
    if arguments.write:
        found = {
            name: digests(problem, threads_of(position))
            for position, (name, problem) in enumerate(problems().items())
        }
        lines = (f"{json.dumps(name)}: {json.dumps(found[name])}" for name in found)
        KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return
    sets = an.show_config(mode="dicts")["instruction sets"]
    group = f"{arguments.group}: " if arguments.group else ""
    lines = []
    for isa in sets["available"] if arguments.everywhere else [sets["running"]]:
        an._core.set_isa(isa)
        lines += [f"{isa}, {line}" for line in differing(arguments.everywhere, group)]
    n_problems = sum(name.startswith(group) for name in problems())
    print("\n".join(lines) or f"all {n_problems} problems give the hashes kept")
    sys.exit(bool(lines))


if __name__ == "__main__":
    warnings.simplefilter("ignore", an.AdafactorWarning)  # some problems are there to be left out
    main()
