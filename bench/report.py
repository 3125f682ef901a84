"""Tables and plots from a run's JSON, and from nothing else: `python bench/report.py [JSON]`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import plots
from names import (
    CARRIED,
    FLOAT32,
    FLOOR,
    HALF,
    IN_PLACE,
    NATIVE,
    NUMBA,
    ONE_CALL,
    ONE_CALLS,
    OPTAX,
    PEERS,
    SEED,
    TORCH,
    TORCH_ADAMW,
    TORCH_FOREACH,
    TRANSFORMERS,
    UNSCALED,
)
from recorded import Problem, Recorded

RESULTS = Path(__file__).parent / "results"
OURS = (NATIVE, UNSCALED, CARRIED)
QUANTILES = ["median", "p10", "p90", "p99"]
FEWEST_SAMPLES = {"p99": 300}
FEW_SAMPLES = "Of fewer than 300 steps, p99 says nothing and is left out."
WITHOUT_TORCH = 'Steps between torch\'s operations were not measured: `pip install ".[peers]"`.'


def write_report(path: Path) -> Path:
    """Write the report beside the JSON of the run, and return its path."""
    recorded = Recorded(path)
    sections = [
        heading(recorded),
        *(f"![{picture.stem}]({picture.name})" for picture in plots.draw(recorded)),
        *([speed(recorded)] if recorded.arrays() else []),
        *against_peers(recorded),
        *models(recorded),
        *halves(recorded),
        *([threads(recorded)] if recorded.by_threads() else []),
        *([neighbours(recorded)] if "neighbours" in recorded.run else []),
        *([pools(recorded)] if "pools" in recorded.run else []),
        *([memory(recorded)] if "memory" in recorded.run else []),
        every_figure(recorded),
    ]
    report = path.with_suffix(".md")
    report.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return report


def heading(recorded: Recorded) -> str:
    run = recorded.run
    return (
        f"# One Adafactor step: {run['mode']} run of {run['date']}\n\n{circumstances(run)}\n\n"
        "All contenders take turns in one process, on the same numbers and the same number of "
        "threads, each checked first against what it is to compute, in float64. Times are medians "
        "of a step."
    )


def circumstances(run: dict[str, Any]) -> str:
    machine, software = run["machine"], run["software"]
    native = software["adafactor_native"]
    caches = ", ".join(f"{level} {size}" for level, size in machine["caches"].items())
    compiler = f"{native['compiler']['name']} {native['compiler']['version']}"
    return (
        f"{machine['processor']}, {machine['cores']} cores; {caches}; "
        f"{machine['memory GiB']} GiB; {machine['system']}; "
        f"load average before the run {machine['load before the run']}.\n"
        f"adafactor_native {native['version']} at {software['commit']} ({compiler}, instruction "
        f"set {native['instruction sets']['running']}, {native['openmp']['runtime']}), "
        f"Python {software['python']}, NumPy {software['numpy']}, numba {software['numba']}.\n"
        f"{other_libraries(run)}"
    )


def other_libraries(run: dict[str, Any]) -> str:
    versions = run["software"].get("peers", {})
    taking_part = ", ".join(f"{name} {version}" for name, version in versions.items())
    absent = ", ".join(run.get("absent", []))
    return f"Other libraries: {taking_part or 'none'}; not installed: {absent or 'none'}."


def speed(recorded: Recorded) -> str:
    timed = [SEED, IN_PLACE, NUMBA, NATIVE, UNSCALED, CARRIED, FLOOR]
    slower = [SEED, IN_PLACE, NUMBA]
    rows = [
        [
            problem["name"],
            *(duration(recorded.median_ns(problem, contender)) for contender in timed),
            *(times(recorded.ratio(problem, contender, to=NATIVE)) for contender in slower),
            *(times(recorded.ratio(problem, ours, to=FLOOR)) for ours in OURS),
        ]
        for problem in recorded.arrays()
    ]
    header = [
        "param",
        *timed,
        *(f"{contender} / {NATIVE}" for contender in slower),
        f"{NATIVE} / floor",
        "scale_parameter=False / floor",
        "carry_param_rms=True / floor",
    ]
    return (
        f"## Speed on {count(recorded.cores, 'thread')}\n\n{table(header, rows)}\n\n"
        "The floor is `param -= k*grad`, which moves every byte once. A slice is of a matrix twice "
        "as wide, and has no floor here."
    )


def against_peers(recorded: Recorded) -> list[str]:
    peers = recorded.among(PEERS)
    rows = [
        [
            problem["name"],
            duration(recorded.median_ns(problem, NATIVE)),
            *(with_ratio(recorded, problem, peer) for peer in peers),
        ]
        for problem in recorded.on_all_cores()
        if any(recorded.result(problem, peer) for peer in peers)
    ]
    if not rows:
        return []
    return [
        (
            f"## Against other libraries on {count(recorded.cores, 'thread')}\n\n"
            f"{table(['param', NATIVE, *peers], rows)}\n\n"
            "In brackets: how many of our steps fit in one of theirs. AdamW is another algorithm: it "
            "moves 28 bytes for each float32 parameter in one sweep, and keeps twice the parameters' "
            "memory as state. JAX (optax, keras) copies nothing here either: a step is given the "
            "buffers of the one before."
        )
    ]


def models(recorded: Recorded) -> list[str]:
    problems = recorded.on_all_cores("model")
    rows = [
        [
            contender,
            *(with_ratio(recorded, problem, contender) for problem in problems),
        ]
        for contender in recorded.contenders
        if any(recorded.result(problem, contender) for problem in problems)
    ]
    if not rows:
        return []
    header = [
        "contender",
        *(f"{p['name']}, {p['size'] / 1e6:.1f} M in {p['tensors']}" for p in problems),
    ]
    return [
        (
            f"## Models on {count(recorded.cores, 'thread')}\n\n{table(header, rows)}\n\n"
            "One step of all parameters (millions in so many tensors), in float32. Optimizers of single "
            "arrays run one after the other; Optimizer and the libraries are given all tensors at once. "
            f"In brackets: the ratio to {NATIVE}. Tensors of more than two dimensions are factored by the "
            "libraries and with convention='torch', but not by the seed, nor by us otherwise."
        )
    ]


def halves(recorded: Recorded) -> list[str]:
    return [
        f"## Half precision on {count(recorded.cores, 'thread')}\n\n{in_halves(recorded, problem)}"
        for problem in recorded.on_all_cores("half")
    ]


def in_halves(recorded: Recorded, problem: Problem) -> str:
    shown = ["median", "p10", "p90"]
    header = ["contender", *shown, f"median / that of {FLOAT32}", f"... of {HALF}"]
    header += ["bytes per parameter", "GB/s", "error"]
    rows = [
        [
            contender,
            *(duration(result["ns"][quantile]) for quantile in shown),
            *(times(recorded.ratio(problem, contender, to=ours)) for ours in (FLOAT32, HALF)),
            f"{result['bytes per parameter']:g}",
            three_digits(recorded.gigabytes_per_s(problem, contender) or 0),
            f"{result['error']:.0e}",
        ]
        for contender in recorded.contenders
        if (result := recorded.result(problem, contender))
    ]
    return (
        f"{table(header, rows)}\n\n"
        f"A step of one {problem['name'].removesuffix(' half')} array. Where only the gradient is named, "
        "the parameter is float32; otherwise one type is that of both. Bytes are those that the "
        "algorithm has to move. The error is of what a forward pass would read, the half-precision "
        "copy or parameter, after three steps, relative to max|param|, beside float64; where the "
        "parameter is rounded to nearest after every step and nothing else is kept, beside float64 "
        "rounded likewise. Rounding to bfloat16 once is off by 0.004 at most, a step that rounds "
        "stochastically by 0.008. torch's Adafactor keeps its state and computes in the parameter's "
        "type, torch's AdamW keeps its state in it; transformers works in float32, as we do. Optimizer "
        "has the seed's convention. "
        f"{where(recorded)}"
    )


def with_ratio(recorded: Recorded, problem: Problem, contender: str) -> str:
    ratio = recorded.ratio(problem, contender, to=NATIVE)
    time = duration(recorded.median_ns(problem, contender))
    return time if ratio is None or contender == NATIVE else f"{time} ({times(ratio)})"


def threads(recorded: Recorded) -> str:
    scaled = [NUMBA, NATIVE, FLOOR]
    header = ["param", "threads"]
    for contender in scaled:
        header += [contender, "gain"]
    rows = []
    for runs in recorded.by_threads():
        for problem in runs:
            row = [problem["name"], str(problem["threads"])]
            for contender in scaled:
                one = recorded.median_ns(runs[0], contender)
                now = recorded.median_ns(problem, contender)
                row += [duration(now), times(one / now if one and now else None)]
            rows.append(row)
    return f"## Threads\n\n{table(header, rows)}"


def neighbours(recorded: Recorded) -> str:
    results = recorded.run["neighbours"]
    quiet = {r["contender"]: r["ns"]["median"] for r in results if r["busy processes"] == 0}
    header = ["contender", "busy processes", *QUANTILES, "median / quiet median"]
    rows = [
        [
            r["contender"],
            str(r["busy processes"]),
            *quantiles(r),
            times(r["ns"]["median"] / quiet[r["contender"]]),
        ]
        for r in results
    ]
    return (
        f"## Beside busy processes\n\n{table(header, rows)}\n\n"
        f"1024x1024 in float32 on {count(recorded.cores, 'thread')}, each step timed alone. "
        f"{FEW_SAMPLES}"
    )


def pools(recorded: Recorded) -> str:
    """Beside another library's OpenMP threads: torch's, which work before each timed step."""
    title = "## Between torch's operations"
    orders = recorded.run.get("pools")
    if not orders:
        return f"{title}\n\n{WITHOUT_TORCH}"
    header = ["imported", "threads of torch's work", "busy processes", *QUANTILES]
    rows = [
        [
            order["imported"],
            str(r["torch threads"]),
            str(r["busy processes"]),
            *quantiles(r),
            times(r["ns"]["median"] / quiet_median(order)),
        ]
        for order in orders
        for r in order["times"]
    ]
    loaded = "; ".join(f"{', '.join(o['OpenMP'])} ({o['imported']})" for o in orders)
    return (
        f"{title}\n\n{table([*header, 'median / quiet median'], rows)}\n\n"
        f"The same step of adafactor_native, each after torch {orders[0]['torch']} went forward and "
        "backward through a layer that has the stepped parameter as weights; on 0 threads: without. "
        f"The first import decides how idle threads wait. OpenMP runtimes: {loaded}. {FEW_SAMPLES}"
    )


def quiet_median(order: dict[str, Any]) -> float:
    """Without torch's work, and without busy processes, in the same process."""
    return next(
        float(r["ns"]["median"])
        for r in order["times"]
        if (r["busy processes"], r["torch threads"]) == (0, 0)
    )


def memory(recorded: Recorded) -> str:
    header = ["contender", "param", "peak of its first step above param and grad"]
    rows = [
        [r["contender"], r["problem"], f"{r['peak bytes'] / 2**20:.1f} MiB"]
        for r in recorded.run["memory"]
    ]
    return f"## Memory\n\n{table(header, rows)}"


def every_figure(recorded: Recorded) -> str:
    header = ["param", "threads", "contender", *QUANTILES]
    header += ["ns per parameter", "bytes per parameter", "GB/s", "error"]
    rows = []
    for result in recorded.run["results"]:
        problem, median_ns = result["problem"], result["ns"]["median"]
        rows.append(
            [
                problem["name"],
                str(problem["threads"]),
                result["contender"],
                *(duration(result["ns"][quantile]) for quantile in QUANTILES),
                three_digits(median_ns / problem["size"]),
                f"{result['bytes per parameter']:g}",
                three_digits(recorded.gigabytes_per_s(problem, result["contender"]) or 0),
                f"{result['error']:.0e}",
            ]
        )
    return (
        f"## Every figure\n\n{table(header, rows)}\n\n"
        "Bytes per parameter are those that the algorithm has to move, whatever a contender moves. "
        "The error is the largest after three steps, relative to max|param|."
    )


def quantiles(result: dict[str, Any]) -> list[str]:
    return [
        duration(ns) if result["samples"] >= FEWEST_SAMPLES.get(quantile, 0) else ""
        for quantile, ns in ((quantile, result["ns"][quantile]) for quantile in QUANTILES)
    ]


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])


def duration(ns: float | None) -> str:
    if ns is None:
        return ""
    for unit, factor in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= factor:
            return f"{three_digits(ns / factor)} {unit}"
    return f"{three_digits(ns)} ns"


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{three_digits(ratio)}x"


def three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


README_START, README_MODELS, README_HALF, README_END = (
    "<!-- bench/results -->",
    "<!-- bench/results, models -->",
    "<!-- bench/results, half -->",
    "<!-- end -->",
)


def write_into_readme(recorded: Recorded, readme: Path) -> None:
    """Replace what stands between two marks by a short table, of all that the run has measured."""
    text = readme.read_text(encoding="utf-8")
    if recorded.arrays():
        text = replaced(text, README_START, summary(recorded))
    if table_of_models := in_one_call(recorded):
        text = replaced(text, README_MODELS, table_of_models)
    for problem in recorded.on_all_cores("half"):
        text = replaced(text, README_HALF, in_halves(recorded, problem))
    readme.write_text(text, encoding="utf-8")


def replaced(text: str, start: str, block: str) -> str:
    before, rest = text.split(start)
    _, after = rest.split(README_END, 1)
    return f"{before}{start}\n{block}\n{README_END}{after}"


def summary(recorded: Recorded) -> str:
    others = recorded.among([SEED, NUMBA, *PEERS])
    rows = [
        [
            problem["name"],
            duration(recorded.median_ns(problem, NATIVE)),
            *(times(recorded.ratio(problem, other, to=NATIVE)) for other in others),
            *(times(recorded.ratio(problem, ours, to=FLOOR)) for ours in OURS),
        ]
        for problem in recorded.on_all_cores()
        if recorded.result(problem, NATIVE)
    ]
    header = ["param", "ours", *others]
    header += ["ours / floor", "... without RMS(param)", "... carrying it"]
    return (
        f"{table(header, rows)}\n\n"
        "The time of our step; how many of it fit into one step of the others; how many times the "
        "floor, `param -= k*grad`, fits into ours. "
        f"{where(recorded)} numba runs the same two "
        "sweeps, as well written as we can, free to reorder sums and without the search for nan. "
        "AdamW is another algorithm, with twice the parameters' memory as state. Kernels of more "
        "than two axes (ResNet-50) keep a full float64 `v` here, as in the seed; the libraries "
        "factor them.\n\n"
        f"{noise(recorded)}"
    )


def where(recorded: Recorded) -> str:
    machine, native = recorded.run["machine"], recorded.run["software"]["adafactor_native"]
    return (
        f"Medians on {count(recorded.cores, 'thread')}: {machine['processor']}, "
        f"{native['compiler']['name']} {native['compiler']['version']}, instruction set "
        f"{native['instruction sets']['running']}, {recorded.run['date']}."
    )


def in_one_call(recorded: Recorded) -> str:
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
    if not rows:
        return ""
    header = ["params", "loop over AdaFactor", *calls, *others]
    return (
        f"{table(header, rows)}\n\n"
        "Times of a step of all tensors, with the seed's convention unless another is named; how many "
        f"steps of Optimizer, all or nothing, fit into one step of the others. {where(recorded)}"
    )


def noise(recorded: Recorded) -> str:
    """Our step in company, each condition against the quiet median of the same process."""
    alone = recorded.neighbours_of(NATIVE)
    rows = [in_company("nothing", r, alone[0]["ns"]["median"]) for r in alone]
    orders = recorded.run.get("pools") or []
    for order in orders:
        place = "first" if order["imported"].startswith("torch") else "second"
        rows += [
            in_company(f"torch works, imported {place}", r, quiet_median(order))
            for r in order["times"]
            if r["torch threads"] == recorded.cores
        ]
    header = [
        "between steps of 1024x1024",
        "busy processes beside",
        "p50",
        "p90",
        "p99",
        "p50 / quiet p50",
    ]
    return (
        f"{table(header, rows)}\n\n"
        f"Steps timed one by one. {'' if orders else WITHOUT_TORCH}".rstrip()
    )


def in_company(between: str, result: dict[str, Any], quiet_ns: float) -> list[str]:
    median, _, p90, p99 = quantiles(result)
    ratio = times(result["ns"]["median"] / quiet_ns)
    return [between, str(result["busy processes"]), median, p90, p99, ratio]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path, nargs="?", default=RESULTS / "speed.json")
    parser.add_argument("--readme", type=Path, help="write a short table between its marks too")
    arguments = parser.parse_args()
    print(write_report(arguments.json))
    if arguments.readme:
        write_into_readme(Recorded(arguments.json), arguments.readme)
