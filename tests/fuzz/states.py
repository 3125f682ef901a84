"""States, files and pickles with anything changed in them load whole, or are refused and change nothing.

    python tests/fuzz/states.py --seconds 60              with a seed that is printed
    python tests/fuzz/states.py --seed 5 --model 77       the input that a failure names

An input is the state of a model of some kind, as a dict, as a file of NumPy's or of safetensors, or as
a pickle, with bytes overwritten, left out, doubled, moved, cut, or with types, shapes and numbers
exchanged. What loads it must raise a TypeError or ValueError and leave params and state as they were,
to the bit, or give an optimizer that is sound: it steps, or says in a sentence why it does not, and its
own checkpoint loads. Pickles may raise what Python's pickle raises. None may end the process or take
memory out of proportion, but for Python's own unpickler: its list of what it has read is as long as a
number in the bytes says, before anything of this package is called. So a pickle is read twice, first by
the unpickler that is written in Python and has no such list.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import test_hostile_pickles as pickles
import test_hostile_states as states
from adafactor_native import AdaFactor, Optimizer
from fuzz.driver import Tally, main_loop
from fuzz.runs import Fault

MEMORY = 256 << 20  # bytes that one input may take, of models of a few hundred
ALL_MEMORY = 2 << 30  # of the process: what asks for more, touched or not, gets a MemoryError
SUFFIXES = (".npz", ".safetensors")
LOADING = (
    {},
    {"strict": False},
    {"convert": True},
    {"keep": ["lr", "groups"]},
    {"rename": {"w": "b", "b": "w"}},
)

# What a control puts in the place of loading.
Load = Callable[[Any, Any, dict[str, Any]], None]


def subject_of(rng: np.random.Generator) -> Any:
    kinds = [*states.KINDS, "array", "vector"]
    kind = str(rng.choice(kinds))
    if kind in states.KINDS:
        return states.model(kind, steps=int(rng.integers(3)), seed=int(rng.integers(100)))
    return states.array(int(rng.integers(3)), (4, 3) if kind == "array" else (5,))


def bits(opt: Any) -> list[bytes]:
    """All that an optimizer is: the state with params, or of an AdaFactor alone."""
    return [value for _, value in sorted(states.bits(opt).items())]


def changed_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        data = pickles.changed(data, rng) or b"x"
    return data


def changed_file(data: bytes, suffix: str, rng: np.random.Generator) -> bytes:
    """As changed_bytes, more often where the header is: at the beginning, or at the end."""
    if rng.random() < 0.3:
        return changed_bytes(data, rng)
    raw = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        at = int(rng.integers(min(len(raw), 3000)))
        raw[at if suffix == ".safetensors" else -1 - at] = int(rng.integers(256))
    return bytes(raw)


def load(opt: Any, state: Any, how: dict[str, Any]) -> None:
    if isinstance(state, Path):
        opt.load(state, **how)
    else:
        opt.load_state_dict(state, **how)


def try_state(opt: Any, state: Any, how: dict[str, Any], load_by: Load) -> bool:
    """Load; return whether it was. Raise Fault for what must not be."""
    before = bits(opt)
    try:
        load_by(opt, state, how)
    except (TypeError, ValueError) as error:
        if not str(error):
            raise Fault("an error without a sentence") from error
        if bits(opt) != before:
            raise Fault(f"an error has changed the optimizer: {error}") from error
        return False
    check_sound(opt)
    return True


def check_sound(opt: Any) -> None:
    """An optimizer that has loaded something is one as any other."""
    saved = opt.state_dict(params=True) if isinstance(opt, Optimizer) else opt.state_dict()
    for key, values in saved.items():
        if key.split("/")[0] in ("exp_row", "exp_col", "v") and not (
            np.isfinite(values).all() and (values >= 0).all()
        ):
            raise Fault(f"{key} is not a mean of squares: {values}")
    before = bits(opt)
    opt.load_state_dict(saved)
    if bits(opt) != before:
        raise Fault("its own state has changed it")
    try:
        if isinstance(opt, AdaFactor):
            opt.update(np.ones(opt.shape), np.full(opt.shape, 0.5))
        else:
            opt.step({name: np.full(x.shape, 0.5) for name, x in opt.params.items()})
    except (FloatingPointError, ValueError, OverflowError) as error:
        if bits(opt) != before and isinstance(opt, Optimizer):
            raise Fault(f"a step that raised has changed the optimizer: {error}") from error


class Memory:
    """The most that the process has held since this object was made, where the system tells, else ever."""

    def __init__(self) -> None:
        with suppress(OSError):  # of Linux
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self._start = self._peak()

    def _peak(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

    def check(self) -> None:
        grown = self._peak() - self._start
        if grown > MEMORY:
            raise Fault(f"{grown >> 20} MiB of memory for a state of a few hundred bytes")


def try_input(seed: int, number: int, tally: Tally, load_by: Load = load) -> None:
    rng = np.random.default_rng([seed, number])
    opt = subject_of(rng)
    medium = str(rng.choice(["dict", "pickle", *SUFFIXES]))
    how = LOADING[int(rng.integers(len(LOADING)))] if isinstance(opt, Optimizer) else {}
    memory = Memory()
    if medium == "pickle":
        data, kept = pickles.dumped(opt, int(rng.choice([3, 4])))
        before = bits(opt)
        data = changed_bytes(data, rng)
        if pickles.outcome(data, kept, pickles.FrugalReader) == "no memory":
            raise Fault(
                f"{ALL_MEMORY >> 20} MiB are too little for a pickle of a few hundred bytes"
            )
        memory.check()
        outcome = pickles.outcome(data, kept)
        if bits(opt) != before:
            raise Fault("a pickle has changed the optimizer that it was made of")
        worked = outcome == "worked"
    elif medium == "dict":
        full = opt.state_dict(params=True) if isinstance(opt, Optimizer) else opt.state_dict()
        state = states.mutated(full, rng)
        for _ in range(int(rng.choice([0, 0, 0, 1, 2]))):
            with suppress(Exception):  # what was changed may be nothing that can be changed again
                state = states.mutated(state, rng)
        worked = try_state(opt, state, how, load_by)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"state{medium}")
            opt.save(path, **({"params": True} if isinstance(opt, Optimizer) else {}))
            path.write_bytes(changed_file(path.read_bytes(), medium, rng))
            worked = try_state(opt, path, how, load_by)
    tally.steps += worked
    tally.left_out += not worked
    if medium != "pickle":
        memory.check()


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ALL_MEMORY, ALL_MEMORY))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    main_loop(parser, "states.py", try_input, words=("loaded", "refused"))


if __name__ == "__main__":
    main()
