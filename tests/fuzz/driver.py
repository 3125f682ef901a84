"""What the fuzzers have in common: the loop, the tally, and the line that repeats a failure."""

from __future__ import annotations

import argparse
import faulthandler
import os
import secrets
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import adafactor_native as an

MOST_FAILURES = 10
_PROGRESS = "FUZZ_PROGRESS"  # the file in which a worker notes the number of its input


@dataclass
class Tally:
    """What was tried.

    Attributes
    ----------
    inputs : int
        Models, or states, that were drawn.
    steps : int
        Steps of tensors that were taken, in all ways; states that were loaded.
    left_out : int
        Those that were refused or skipped, likewise.
    compared : int
        Steps of tensors that were compared with the reference.
    """

    inputs: int = 0
    steps: int = 0
    left_out: int = 0
    compared: int = 0


def main_loop(
    parser: argparse.ArgumentParser,
    script: str,
    try_one: Callable[..., None],
    shrunk: Callable[[int, int], str] | None = None,
    words: tuple[str, str] = ("steps", "left out"),
) -> None:
    """Draw inputs until the time is over, in a process of its own, which may die; exit with 1 if any failed.

    `try_one` takes seed, number, a Tally and the parser's own arguments; `shrunk` has the arguments
    by which less of an input fails. `words`: what a tally's steps and left_out are.
    """
    parser.add_argument("--seed", type=int, help="default: a random one, which is printed")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--model", type=int, help="the only input to be tried, by number")
    parser.add_argument("--first", type=int, default=0, help="the first input's number")
    given = parser.parse_args()
    if _PROGRESS in os.environ or given.model is not None:
        _work(given, script, try_one, shrunk, words)
    seed = secrets.randbelow(2**32) if given.seed is None else given.seed
    first, end, failed = given.first, time.monotonic() + given.seconds, False
    with tempfile.NamedTemporaryFile() as progress:
        while True:
            own = [f"--seed={seed}", f"--first={first}", f"--seconds={end - time.monotonic()}"]
            command = [sys.executable, sys.argv[0], *own]
            print(f"python tests/fuzz/{script} --seed {seed} --first {first}", flush=True)
            done = subprocess.run(
                command, env={**os.environ, _PROGRESS: progress.name}, check=False
            )
            failed = failed or done.returncode != 0
            if done.returncode in (0, 1) or time.monotonic() >= end:
                sys.exit(failed)
            progress.seek(0)
            number = int(progress.read() or b"0")
            print(f"FOUND the process ended with {done.returncode}")
            print(f"python tests/fuzz/{script} --seed {seed} --model {number}", flush=True)
            first = number + 1


def _work(
    given: argparse.Namespace,
    script: str,
    try_one: Callable[..., None],
    shrunk: Callable[[int, int], str] | None,
    words: tuple[str, str],
) -> None:
    faulthandler.enable()
    warnings.simplefilter("ignore", an.AdafactorWarning)
    own = {"seed", "seconds", "model", "first"}
    kept = {k: v for k, v in vars(given).items() if k not in own and v is not None}
    note = os.open(os.environ.get(_PROGRESS, os.devnull), os.O_WRONLY)
    tally, failures, start = Tally(), 0, time.monotonic()
    number = given.first if given.model is None else given.model
    while True:
        os.pwrite(note, f"{number:12}".encode(), 0)
        tally.inputs += 1
        try:
            try_one(given.seed, number, tally, **kept)
        except Exception as error:  # noqa: BLE001 (whatever it is, it was found)
            failures += 1
            traceback.print_exc()
            more = shrunk(given.seed, number) if shrunk is not None and not kept else ""
            print(f"FOUND {type(error).__name__}: {error}"[:600])
            line = f"tests/fuzz/{script} --seed {given.seed} --model {number}{more}"
            print(f"python {line}", flush=True)
        number += 1
        is_over = time.monotonic() - start > given.seconds or failures >= MOST_FAILURES
        if given.model is not None or is_over:
            break
    seconds = max(time.monotonic() - start, 1e-9)
    print(
        f"{tally.inputs} inputs, {tally.steps} {words[0]}, {tally.left_out} {words[1]}, "
        f"{tally.compared} compared with the reference, {failures} failures in {seconds:.0f} s "
        f"({tally.steps / seconds:.0f} {words[0]} a second); the next is --first {number}",
        flush=True,
    )
    sys.exit(failures > 0)
