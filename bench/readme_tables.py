"""The tables in README.md and bench/README.md, each from the run that its mark names.

A mark is a comment like ``<!-- bench/results/speed.json: arrays -->``, with a block of `BLOCKS` after the
colon; what stands from there to ``<!-- end -->`` is written by `write_into` and never by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import company
import sections
import training_memory
from markdown import duration, milliseconds, on_machine, table, times
from names import (
    CARRIED,
    FLOOR,
    KERAS,
    NATIVE,
    NUMBA,
    ONE_CALL,
    ONE_CALLS,
    OPTAX,
    PEERS,
    PLAIN,
    TORCH,
    TORCH_ADAMW,
    TORCH_FOREACH,
    TRANSFORMERS,
    UNSCALED,
)
from recorded import Recorded, read_run

ROOT = Path(__file__).parent.parent
README_FILES = (ROOT / "README.md", ROOT / "bench" / "README.md")
MARKED = re.compile(r"(<!-- (\S+\.json): (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

CLAIMED = "4096x4096"
SHOWN = ("64x64", "1024x1024", CLAIMED, "ResNet-50", "GPT-2 small", "T5-base")


def write_into(readme: Path) -> None:
    text = readme.read_text(encoding="utf-8")
    readme.write_text(with_tables(text), encoding="utf-8")


def with_tables(text: str) -> str:
    """The text with every marked block as the runs have it now."""

    def block(match: re.Match[str]) -> str:
        start, path, name, end = match.groups()
        return f"{start}{BLOCKS[name](ROOT / path)}\n{end}"

    return MARKED.sub(block, text)


def claim(recorded: Recorded) -> str:
    """One sentence: our step of a large matrix, NumPy's and torch's."""
    (problem,) = (p for p in recorded.on_all_cores("size") if p["name"] == CLAIMED)
    ours, numpy, torch = (
        duration(recorded.median_ns(problem, contender)) for contender in (NATIVE, PLAIN, TORCH)
    )
    more, more_than_torch = (
        recorded.ratio(problem, rival, to=NATIVE) or 0 for rival in (PLAIN, TORCH)
    )
    return (
        f"One step of a {CLAIMED} matrix of float32 takes {ours}. Plain NumPy takes {numpy} for it, "
        f"{more:.0f} times as long, and torch's own Adafactor {torch}, {more_than_torch:.0f} times."
    )


def front(recorded: Recorded) -> str:
    """A few arrays and models, in one unit."""
    contenders = recorded.among(
        [NATIVE, PLAIN, NUMBA, TORCH, TRANSFORMERS, OPTAX, KERAS, TORCH_ADAMW]
    )
    problems = [p for p in recorded.on_all_cores() if p["name"] in SHOWN]
    rows = [
        [p["name"], *(milliseconds(recorded.median_ns(p, contender)) for contender in contenders)]
        for p in problems
    ]
    return (
        f"{table(['milliseconds per step', *contenders], rows)}\n\n"
        f"{on_machine(recorded.run)} AdamW is another algorithm, with twice the parameters' memory as state."
    )


def arrays(recorded: Recorded) -> str:
    """All arrays and models, as multiples of our time."""
    others = recorded.among([PLAIN, NUMBA, *PEERS])
    rows = [
        [
            problem["name"],
            duration(recorded.median_ns(problem, NATIVE)),
            *(times(recorded.ratio(problem, other, to=NATIVE)) for other in others),
            *(
                times(recorded.ratio(problem, ours, to=FLOOR))
                for ours in (NATIVE, UNSCALED, CARRIED)
            ),
        ]
        for problem in recorded.on_all_cores()
        if recorded.result(problem, NATIVE)
    ]
    header = ["param", "ours", *others]
    header += ["ours / floor", "... without RMS(param)", "... carrying it"]
    return (
        f"{table(header, rows)}\n\n"
        "The time of our step; how many of it fit into one step of the others; how many times the "
        f"floor, `param -= k*grad`, fits into ours. {on_machine(recorded.run)} numba runs the same two "
        "sweeps, as well written as we can, free to reorder sums and without the search for nan. "
        "AdamW is another algorithm, with twice the parameters' memory as state. Kernels of more "
        "than two axes (ResNet-50) keep a full float64 `v` here, as in plain NumPy; the libraries "
        "factor them."
    )


def models(recorded: Recorded) -> str:
    """Whole models by `Optimizer`, beside a loop over `AdaFactor` and the libraries."""
    calls = recorded.among(ONE_CALLS)
    others = recorded.among([TORCH, TORCH_FOREACH, TRANSFORMERS, OPTAX, TORCH_ADAMW])
    rows = [
        [
            f"{problem['name']}, {problem['size'] / 1e6:.1f} M",
            duration(recorded.median_ns(problem, NATIVE)),
            *(duration(recorded.median_ns(problem, call)) for call in calls),
            *(times(recorded.ratio(problem, other, to=ONE_CALL)) for other in others),
        ]
        for problem in recorded.on_all_cores("model")
        if recorded.result(problem, ONE_CALL)
    ]
    header = ["params", "loop over AdaFactor", *calls, *others]
    return (
        f"{table(header, rows)}\n\n"
        'Times of a step of all tensors, with `convention="numpy"` unless another is named; how many '
        f"steps of Optimizer, all or nothing, fit into one step of the others. {on_machine(recorded.run)}"
    )


def halves(recorded: Recorded) -> str:
    return "\n\n".join(sections.in_halves(recorded, p) for p in recorded.on_all_cores("half"))


def of_run(block: Callable[[Recorded], str]) -> Callable[[Path], str]:
    return lambda path: block(Recorded(path, read_run(path)))


BLOCKS: dict[str, Callable[[Path], str]] = {
    "claim": of_run(claim),
    "front": of_run(front),
    "arrays": of_run(arrays),
    "company": of_run(company.in_short),
    "models": of_run(models),
    "halves": of_run(halves),
    "memory": lambda path: training_memory.in_short(read_run(path)),
}
