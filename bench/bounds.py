"""What is asked of a step's speed, row by row, and what a run has got: `python bench/bounds.py JSON`.

The rows are ratios of medians of one run, so that they hold on any machine; only a call from Python is
asked for in microseconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from markdown import count, on_machine, table, three_digits
from names import (
    CARRIED,
    FLOAT32_STATE,
    HALF,
    HALF_MOMENTUM,
    HALF_MOMENTUM_IN_HALF,
    IN_TORCH,
    IN_TORCH_HALF,
    MEASURED,
    NATIVE,
    NUMBA,
    ONE_CALL,
    ONE_CALL_AS_HUGGING_FACE,
    ONE_CALL_AS_KERAS,
    ONE_CALL_AS_TORCH,
    ONE_CALL_CARRIED,
    OPTAX,
    PLAIN,
    TORCH,
    TORCH_ADAMW,
    TORCH_HALF,
    TRANSFORMERS,
    UNSCALED,
)
from recorded import COLD, HOT, Recorded, read_run

Got = Callable[[Recorded], "float | None"]
NEAR_LIMIT = 1.05


@dataclass(frozen=True)
class Bound:
    work: str
    quantity: str
    asked: float
    at_least: bool
    got: Got

    def row(self, recorded: Recorded) -> list[str]:
        sign = "at least" if self.at_least else "at most"
        got = self.got(recorded)
        if got is None:
            return [self.work, self.quantity, f"{sign} {self.asked:g}", "", "not measured"]
        # compared as it is printed, or a row would say 1.15, at most 1.15, missed
        printed = float(three_digits(got))
        is_kept = printed >= self.asked if self.at_least else printed <= self.asked
        verdict = "kept" if is_kept else "missed"
        return [self.work, self.quantity, f"{sign} {self.asked:g}", three_digits(got), verdict]


def bounds(recorded: Recorded) -> list[Bound]:
    cores = recorded.cores
    return [
        *near_the_limit(cores),
        *beside_adamw(cores),
        *beside_torch(cores),
        Bound(
            "every row with a limit",
            f"least numba / step where the step is not within {NEAR_LIMIT} of its limit",
            1.1,
            True,
            least_of_numba,
        ),
        *(
            Bound(
                "ResNet-50, all cores",
                f"{ours} / {OPTAX}",
                0.7,
                False,
                over(ours, OPTAX, "ResNet-50"),
            )
            for ours in (ONE_CALL_AS_TORCH, ONE_CALL_AS_HUGGING_FACE, ONE_CALL_AS_KERAS)
        ),
        Bound(
            "10000000, all cores",
            f"{TORCH_ADAMW} / {FLOAT32_STATE}",
            0.75,
            True,
            over(TORCH_ADAMW, FLOAT32_STATE, "10000000"),
        ),
        *(
            Bound(
                "4096x4096 half",
                f"{ours} / {HALF}",
                asked,
                False,
                over(ours, HALF, "4096x4096 half"),
            )
            for ours, asked in ((HALF_MOMENTUM_IN_HALF, 1.45), (HALF_MOMENTUM, 1.85))
        ),
        *(
            Bound("3.3 M", f"200 of 256x64 / one of 51200x64, {warmth}", 1.15, False, got)
            for warmth, got in ((w, partial(many_over_one, warmth=w)) for w in (COLD, HOT))
        ),
        Bound(
            "GPT-2 small",
            f"{MEASURED} / {ONE_CALL}",
            0.8,
            False,
            over(MEASURED, ONE_CALL, "GPT-2 small"),
        ),
        Bound("64x64", f"{PLAIN} / step, hot", 30, True, over(PLAIN, NATIVE, "64x64", warmth=HOT)),
        Bound("16x16", "update minus an empty call, µs", 1.5, False, update_above_an_empty_call),
    ]


def bounds_in_torch(recorded: Recorded) -> list[Bound]:
    """Of steps on torch's tensors, in a run of torch_steps.py."""
    cores, gpt2, tiny = recorded.cores, "GPT-2 small", "1000 tiny tensors"
    return [
        *(
            Bound(
                f"{name}, cold, {count(threads, 'thread')}",
                f"{other} / {ours}",
                asked,
                True,
                over(other, ours, name, threads),
            )
            for name, threads, other, ours, asked in (
                (gpt2, cores, TORCH, IN_TORCH, 7),
                (gpt2, 1, TORCH, IN_TORCH, 8),
                (gpt2, cores, TRANSFORMERS, IN_TORCH, 6),
                (f"{gpt2} half", cores, TORCH_HALF, IN_TORCH_HALF, 15),
                (tiny, 1, TORCH, IN_TORCH, 30),
                (tiny, 1, TORCH_ADAMW, IN_TORCH, 4),
            )
        ),
        *(
            Bound(
                f"{tiny}, hot, 1 thread",
                f"{other} / {IN_TORCH}",
                asked,
                True,
                over(other, IN_TORCH, tiny, 1, HOT),
            )
            for other, asked in ((TORCH, 30), (TORCH_ADAMW, 4))
        ),
    ]


def near_the_limit(cores: int) -> Iterator[Bound]:
    for ours in (NATIVE, UNSCALED, CARRIED):
        sweeps = "2 reads + floor" if ours == NATIVE else "1 read + floor"
        for name in ("4096x4096", "8192x4096", "50257x768"):
            for threads, asked in {1: 1.15, cores: 1.08}.items():
                yield Bound(
                    f"{name}, {count(threads, 'thread')}",
                    f"{ours} / ({sweeps})",
                    asked,
                    False,
                    partial(over_limit, ours=ours, name=name, threads=threads),
                )
        yield Bound(
            "1024x1024 in cache, 1 thread",
            f"{ours} / ({sweeps})",
            1.25,
            False,
            partial(over_limit, ours=ours, name="1024x1024", threads=1, warmth=HOT),
        )


def beside_adamw(cores: int) -> Iterator[Bound]:
    for n, asked in ((1024, 2.0), (2048, 1.35), (4096, 1.25)):
        name = f"{n}x{n}"
        got = over(TORCH_ADAMW, NATIVE, name)
        yield Bound(f"{name}, cold, all cores", f"{TORCH_ADAMW} / {NATIVE}", asked, True, got)
    for name, plain, carried, threads in (
        ("GPT-2 small", 1.2, 1.5, cores),
        ("T5-base", 1.1, 1.4, cores),
        ("Llama-3-8B layer", 1.2, 1.5, cores),
        ("GPT-2 small", 1.0, 1.25, 1),
    ):
        for ours, asked in ((ONE_CALL, plain), (ONE_CALL_CARRIED, carried)):
            got = over(TORCH_ADAMW, ours, name, threads)
            work = f"{name}, {count(threads, 'thread')}"
            yield Bound(work, f"{TORCH_ADAMW} / {ours}", asked, True, got)


def beside_torch(cores: int) -> Iterator[Bound]:
    for name, ours, threads, asked in (
        ("1024x1024", NATIVE, cores, 12),
        ("4096x4096", NATIVE, cores, 14),
        ("GPT-2 small", ONE_CALL, cores, 7),
        ("GPT-2 small", ONE_CALL, 1, 8),
    ):
        work = f"{name}, cold, {count(threads, 'thread')}"
        yield Bound(work, f"{TORCH} / {ours}", asked, True, over(TORCH, ours, name, threads))


def over(
    contender: str, unit: str, name: str, threads: int | None = None, warmth: str = COLD
) -> Got:
    def got(recorded: Recorded) -> float | None:
        problem = recorded.find(name, threads)
        return recorded.ratio(problem, contender, unit, warmth) if problem else None

    return got


def over_limit(
    recorded: Recorded, ours: str, name: str, threads: int, warmth: str = COLD
) -> float | None:
    problem = recorded.find(name, threads)
    return recorded.over_limit(problem, ours, warmth) if problem else None


def least_of_numba(recorded: Recorded) -> float | None:
    ratios = [
        ratio
        for problem in recorded.problems
        if (ratio := recorded.ratio(problem, NUMBA, NATIVE))
        and (over_limit := recorded.over_limit(problem, NATIVE))
        and over_limit > NEAR_LIMIT
    ]
    return min(ratios, default=None)


def many_over_one(recorded: Recorded, warmth: str) -> float | None:
    many, one = (
        recorded.median_ns(problem, ONE_CALL, warmth) if (problem := recorded.find(name)) else None
        for name in ("200 of 256x64", "one of 51200x64")
    )
    return many / one if many and one else None


def update_above_an_empty_call(recorded: Recorded) -> float | None:
    medians = {call["call"]: call["ns"]["median"] for call in recorded.run.get("calls", [])}
    if not medians:
        return None
    return float(medians["update of 16x16"] - medians["empty call"]) / 1e3


def asked_and_got(recorded: Recorded, asked: Callable[[Recorded], list[Bound]] = bounds) -> str:
    header = ["work", "ratio of medians, unless named", "asked", "got", ""]
    rows = [bound.row(recorded) for bound in asked(recorded)]
    return f"{table(header, rows)}\n\n{on_machine(recorded.run)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path, help="a run, as `python bench` writes it")
    path = parser.parse_args().json
    print(asked_and_got(Recorded(path, read_run(path))))


if __name__ == "__main__":
    main()
