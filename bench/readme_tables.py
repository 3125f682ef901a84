"""The tables in README.md, bench/README.md and bench/notes.md, each from the run that its mark names.

A mark is a comment like ``<!-- bench/results/<machine>/speed.json: arrays -->``, with a block of `BLOCKS`
after the colon; the runs of several machines may stand before it. What follows, as far as
``<!-- end -->``, is written by `write_into` and never by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import company
import in_torch
import sections
import training_memory
from bounds import asked_and_got, bounds_in_torch
from markdown import duration, milliseconds, not_quiet, on_machine, table, times
from names import (
    CARRIED,
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
from recorded import Problem, Recorded, read_run

ROOT = Path(__file__).parent.parent
README_FILES = (
    ROOT / "README.md",
    ROOT / "adafactor_native" / "torch" / "README.md",
    ROOT / "bench" / "README.md",
    ROOT / "bench" / "notes.md",
)
RESULTS = ROOT / "bench" / "results"
IN_TORCH_RUN = "torch"
# Whose tables are not of speed.json.
RUNS = {"memory": "half-memory", "in_torch": IN_TORCH_RUN, "bounds_in_torch": IN_TORCH_RUN}
MARK = r"<!-- (\S+\.json(?: \S+\.json)*): (\w+) -->\n"
MARKED = re.compile(rf"({MARK}).*?(<!-- end -->)", re.DOTALL)
LINK = re.compile(r"\]\(((?:(?:\.\./)*bench/)?results)/[\w-]+/([\w-]+)\.(png|md)\)")

CLAIMED = "4096x4096"
SHOWN = ("64x64", "1024x1024", CLAIMED, "ResNet-50", "GPT-2 small")


def write_into(readme: Path) -> None:
    text = readme.read_text(encoding="utf-8")
    readme.write_text(with_tables(text), encoding="utf-8")


def with_tables(text: str) -> str:
    """The text with every marked block as the runs have it now."""

    def block(match: re.Match[str]) -> str:
        start, paths, name, end = match.groups()
        runs = [ROOT / path for path in paths.split()]
        return f"{start}{BLOCKS[name](*runs)}\n{end}"

    return MARKED.sub(block, text)


def led_by(machine: str, text: str) -> str:
    """The text with marks and pictures of another machine's runs, and its tables as these have them.

    Where several machines stand side by side, this one comes first, and none is lost.
    """

    def mark(match: re.Match[str]) -> str:
        paths, name = match.groups()
        run = RUNS.get(name, "speed")
        named = f"bench/results/{machine}/{run}.json"
        if is_missing(machine, run):
            return match[0]
        others = [path for path in paths.split() if path != named] if name == "front" else []
        return f"<!-- {' '.join([named, *others])}: {name} -->\n"

    def link(match: re.Match[str]) -> str:
        folder, name, kind = match.groups()
        if is_missing(machine, name.partition("-")[0]):
            return match[0]
        named = name if kind == "png" or name in RUNS.values() else "speed"
        return f"]({folder}/{machine}/{named}.{kind})"

    return with_tables(re.sub(MARK, mark, LINK.sub(link, text)))


def is_missing(machine: str, run: str) -> bool:
    """Older results, which may lead as well, have no steps on torch's tensors."""
    return run == IN_TORCH_RUN and not (RESULTS / machine / f"{run}.json").exists()


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


def front(*machines: Recorded) -> str:
    """A few arrays and models on each machine, in one unit."""
    listed = [NATIVE, PLAIN, NUMBA, TORCH, TRANSFORMERS, OPTAX, KERAS, TORCH_ADAMW]
    contenders = [who for who in listed if any(who in each.contenders for each in machines)]
    rows = [
        [
            problem["name"],
            recorded.machine_name,
            *(milliseconds(recorded.median_ns(problem, contender)) for contender in contenders),
        ]
        for recorded in machines
        for problem in recorded.on_all_cores()
        if problem["name"] in SHOWN
    ]
    told = " ".join(
        f"{each.machine_name}: {state(each)} {on_machine(each.run)}" for each in machines
    )
    return (
        f"{table(['milliseconds per step', 'machine', *contenders], rows)}\n\n"
        f"{told} AdamW is another algorithm, with twice the parameters' memory as state."
    )


def state(recorded: Recorded) -> str:
    """What is timed, and whether the machine was fit for it."""
    timed = "steps from cold caches" if recorded.has_cold else "steps in a loop"
    version = recorded.run["software"]["adafactor_native"]["version"]
    load = f", {not_quiet(recorded.run)}" if not_quiet(recorded.run) else ""
    return f"{timed}, version {version}{load}."


def arrays(recorded: Recorded) -> str:
    """All arrays and models, as multiples of our time."""
    others = recorded.among([PLAIN, NUMBA, *PEERS])
    limited = [NATIVE, UNSCALED, CARRIED]
    rows = [
        [
            problem["name"],
            *(duration(recorded.median_ns(problem, NATIVE, warmth)) for warmth in recorded.warmths),
            *(times(recorded.ratio(problem, other, to=NATIVE)) for other in others),
            *(times(nearness(recorded)(problem, ours)) for ours in limited),
        ]
        for problem in recorded.on_all_cores()
        if recorded.result(problem, NATIVE)
    ]
    unit = "limit" if recorded.has_cold else "floor"
    header = ["param", *(f"ours, {warmth}" for warmth in recorded.warmths), *others]
    header += [f"ours / {unit}", "... without RMS(param)", "... carrying it"]
    meant = (
        f"{sections.LIMIT} All but the second column is from cold caches."
        if recorded.has_cold
        else "The floor is `param -= k*grad`."
    )
    return (
        f"{table(header, rows)}\n\n"
        "The time of our step; how many of it fit into one step of the others; how many times the "
        f"{unit} fits into ours. {meant} {on_machine(recorded.run)} numba runs the same two "
        "sweeps, as well written as we can, free to reorder sums and without the search for nan. "
        "AdamW is another algorithm, with twice the parameters' memory as state. Kernels of more "
        "than two axes (ResNet-50) keep a full float64 `v` here, as in plain NumPy; the libraries "
        "factor them."
    )


def nearness(recorded: Recorded) -> Callable[[Problem, str], float | None]:
    """Older runs say nothing of sweeps, and are measured by the floor."""
    return recorded.over_limit if recorded.has_cold else recorded.over_floor


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


def of_runs(block: Callable[..., str]) -> Callable[..., str]:
    return lambda *paths: block(*(Recorded(path, read_run(path)) for path in paths))


BLOCKS: dict[str, Callable[..., str]] = {
    "claim": of_runs(claim),
    "front": of_runs(front),
    "arrays": of_runs(arrays),
    "bounds": of_runs(asked_and_got),
    "calls": of_runs(sections.calls_table),
    "company": of_runs(company.in_short),
    "models": of_runs(models),
    "halves": of_runs(halves),
    "in_torch": of_runs(in_torch.in_short),
    "bounds_in_torch": of_runs(partial(asked_and_got, asked=bounds_in_torch)),
    "memory": lambda path: training_memory.in_short(read_run(path)),
}
