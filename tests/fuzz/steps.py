"""Steps any model in several ways: the same bits, nothing beside it touched, the reference's numbers.

    python tests/fuzz/steps.py --seconds 60              with a seed that is printed
    python tests/fuzz/steps.py --seed 5 --seconds 3600   from model 0 of that seed on
    python tests/fuzz/steps.py --seed 5 --model 77       the one that a failure names

A model is drawn from the seed and its number: tensors of 0 to 4 axes of any strides, gaps and byte
offsets in one arena of bytes of nobody's, dtypes, conventions and switches, sizes of numbers, policies,
masters, copies, ways of handing gradients over, arguments that are wrong. It is stepped in three ways:
instruction set, threads, walk of rows. Params, state and reports must be the same, bit for bit; no byte
beside the elements may change, and none at all where there is an error; some tensors of each step are
compared with the float64 reference, from the state that they were in.

Counted are steps of tensors: a model of 60 tensors that takes 4 steps in 3 ways are 720.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import adafactor_native as an
from fuzz.driver import Tally, main_loop
from fuzz.models import MODERATE, Model, draw
from fuzz.runs import Fault, Run, Way, walking
from fuzz.truth import Before, check_step

THREADS = (1, 2, 3, 5)
WALKS = ("side_by_side", "one_by_one", "auto")
COMPARED = 6  # tensors of a step that are compared with the reference

# What a control breaks, to show that it would be seen: called after each step of one of the ways.
Spoil = Callable[[Run, int], None]


def ways(seed: int, number: int) -> list[Way]:
    rng = np.random.default_rng([seed, number, 10**6])
    sets = an._core.available_isas()
    chosen = [str(name) for name in rng.permutation(sets)]
    while len(chosen) < 3:
        chosen.append(sets[int(rng.integers(len(sets)))])
    return [
        Way(
            isa,
            int(rng.choice(THREADS)),
            str(rng.choice(WALKS)),
            int(rng.integers(1, 6)) if k > 0 and rng.random() < 0.4 else -1,
        )
        for k, isa in enumerate(chosen[:3])
    ]


def run_model(
    model: Model, in_ways: list[Way], tally: Tally, spoil: Spoil | None = None, lr_off: float = 1.0
) -> None:
    """Take the steps in every way; raise Fault for what must not be."""
    writable = np.zeros(model.arena.size, bool)
    for tensor in model.tensors:
        for place in (tensor.param, tensor.copy):
            if place is not None:
                place.mark(writable)
    first: Run | None = None
    for way in in_ways:
        with walking(way):
            run = Run(model, way)
            start = run.arena.copy()
            for k in range(len(model.ways)):
                names = compared_names(run, k) if first is None else []
                before = Before(run, names) if names else None
                run.step(k)
                if spoil is not None and first is not None:
                    spoil(run, k)
                if before is not None:
                    tally.compared += check_step(run, before, k, lr_off)
        tally.steps += run.taken
        tally.left_out += run.left_out
        touched = np.flatnonzero((run.arena != start) & ~writable)
        if touched.size:
            raise Fault(f"{way}: {touched.size} bytes beside the elements, at {touched[:5]}")
        check_nans(run)
        if first is None:
            first = run
            check_refusals(run)
            continue
        for k, (one, other) in enumerate(zip(first.said, run.said)):
            if one != other:
                raise Fault(f"{first.way} and {way} report otherwise: number {k}: {one} / {other}")
        differing = np.flatnonzero(first.arena != run.arena)
        if differing.size:
            raise Fault(f"{first.way} and {way} differ in {differing.size} bytes of arrays")
        if first.remembered() != run.remembered():
            raise Fault(f"{first.way} and {way} differ in their state")


def compared_names(run: Run, k: int) -> list[str]:
    names = [t.name for t in run.model.tensors if t.grads[k] is not None]
    return names[k :: max(1, len(names) // COMPARED)][:COMPARED]


def check_nans(run: Run) -> None:
    """All nans that steps have left have the same bits."""
    if run.model.options["nonfinite"] != "propagate" or run.model.of_params == "not finite":
        return
    for name, param in run.params.items():
        array = np.ascontiguousarray(param)
        bits = array.view(f"u{array.itemsize}")[np.isnan(array)]
        if bits.size and (bits != np.array([np.nan], array.dtype).view(bits.dtype)).any():
            raise Fault(f"{run.way}: nans of {name} have other bits: {bits[:3]}")


def check_refusals(run: Run) -> None:
    """Numbers of usual size are not refused."""
    model = run.model
    if model.of_params != "plain" or model.of_grads not in MODERATE or model.spoilt:
        return
    switches = model.arguments
    if switches.get("eps", 1e-30) == 0 or switches.get("lr") == 30.0 or run.left_out == 0:
        return
    if "skip_above" in model.options or {t.param.dtype.name for t in model.tensors} & {"float16"}:
        return
    if model.convention == "numpy" and switches.get("eps_mode") in (None, "both", "root", "clamp"):
        return  # all zeros may have a second moment of zero
    raise Fault(f"{run.left_out} steps of usual numbers left out: {run.said}")


def try_model(
    seed: int,
    number: int,
    tally: Tally,
    tensors: list[str] | None = None,
    steps: int | None = None,
) -> None:
    model = draw(seed, number)
    model.keep(tensors, steps)
    run_model(model, ways(seed, number), tally)


def shrunk(seed: int, number: int) -> str:
    """The arguments of the smallest model that still fails: fewer steps, then one tensor."""

    def fails(tensors: list[str] | None, steps: int | None) -> bool:
        with suppress(Exception):
            try_model(seed, number, Tally(), tensors, steps)
            return False
        return True

    model = draw(seed, number)
    steps = next((k for k in range(1, len(model.ways)) if fails(None, k)), None)
    line = f" --steps {steps}" if steps else ""
    names = [t.name for t in model.tensors]
    while len(names) > 1:
        half = len(names) // 2
        smaller = next((p for p in (names[:half], names[half:]) if fails(p, steps)), None)
        if smaller is None:
            break
        names = smaller
    if len(names) < len(model.tensors):
        line += f" --tensors {','.join(names)}"
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tensors", type=lambda text: text.split(","), help="only these, by name")
    parser.add_argument("--steps", type=int, help="only so many steps")
    main_loop(parser, "steps.py", try_model, shrunk)


if __name__ == "__main__":
    main()
