"""The pictures of a run, drawn from its JSON alone."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter

import in_torch_plot
from markdown import count, not_quiet
from names import (
    CARRIED,
    FLOORS,
    IN_PLACE,
    NATIVE,
    NUMBA,
    ONE_CALL,
    OPTAX,
    PLAIN,
    READS,
    TORCH,
    TORCH_ADAMW,
    TRANSFORMERS,
    UNSCALED,
)
from recorded import Problem, Recorded
from style import LINES, STYLE, caption, title

# In the picture over sizes one line stands for a library, or it would hold fourteen.
OVER_SIZES = [PLAIN, TORCH, TRANSFORMERS, OPTAX, NUMBA, NATIVE, TORCH_ADAMW]
LIMIT = "limit: two reads and param -= k*grad"
MODEL_SIZE = 10**7  # smaller ones are for comparison, in the tables
FROM_MEMORY = 10**6  # elements


def draw(recorded: Recorded) -> list[Path]:
    """Write each picture that the run has figures for beside its JSON; return their paths."""
    pictures = {
        "size": time_against_size,
        "gain": gain_over_plain_numpy,
        "models": time_of_models,
        "limit": nearness_to_the_limit,
        "threads": gain_from_threads,
        "steps": in_torch_plot.times_of_steps,
    }
    paths = []
    for name, picture in pictures.items():
        with matplotlib.rc_context(STYLE):
            figure = picture(recorded)
            if figure is not None:
                path = recorded.path.with_name(f"{recorded.path.stem}-{name}.png")
                figure.savefig(path)
                paths.append(path)
    return paths


def time_against_size(recorded: Recorded) -> Figure | None:
    problems = recorded.on_all_cores("size")
    if len(problems) < 2:
        return None
    figure = Figure(figsize=(8.6, 5.6))
    axes = figure.subplots()
    slowest_first = sorted(  # so that the legend has the order of the lines
        recorded.among(OVER_SIZES), key=lambda c: -(recorded.median_ns(problems[-1], c) or 0)
    )
    for contender in slowest_first:
        points = [
            (problem["size"], recorded.median_ns(problem, contender))
            for problem in problems
            if recorded.result(problem, contender)
        ]
        axes.plot(*zip(*points), label=contender, **LINES.get(contender, {}))
    limits = [
        (p["size"], recorded.limit_ns(p, NATIVE)) for p in problems if p["size"] >= FROM_MEMORY
    ]
    if limits:
        axes.plot(*zip(*limits), label=LIMIT, color="#555555", linestyle="--")
    for problem in problems:
        mark_gain(axes, problem, recorded)

    axes.set(
        xscale="log",
        yscale="log",
        xlabel="shape of the parameter",
        ylabel="median time per step",
    )
    axes.set_xticks([p["size"] for p in problems], [p["name"] for p in problems])
    for label in axes.get_xticklabels():
        label.set(rotation=30, ha="right", rotation_mode="anchor")
    axes.margins(y=0.09)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda ns, _: duration_tick(ns)))
    axes.legend(loc="upper left")
    title(figure, "Time of one Adafactor step on a float32 matrix", not_quiet(recorded.run))
    caption(
        figure,
        f"{where(recorded)} {how_timed(recorded)} Both axes are logarithmic.",
        "In blue: how many times faster than plain NumPy, the twenty lines that people write. Small steps "
        "are limited by the cost of a call from Python, large ones by the memory: the dashed line reads "
        "grad and param, then goes through both and writes param, and does nothing else.",
    )
    return figure


def mark_gain(axes: Axes, problem: Problem, recorded: Recorded) -> None:
    gain, time = recorded.ratio(problem, PLAIN, to=NATIVE), recorded.median_ns(problem, NATIVE)
    if gain is not None and time is not None:
        axes.annotate(
            f"{gain:.0f}x",
            (problem["size"], time),
            xytext=(4, -14),
            textcoords="offset points",
            color=LINES[NATIVE]["color"],
            fontweight="bold",
            path_effects=[withStroke(linewidth=3, foreground="white")],  # beside a line
            zorder=6,
        )


def gain_over_plain_numpy(recorded: Recorded) -> Figure | None:
    problems = recorded.arrays()
    compared = [c for c in (IN_PLACE, NUMBA, NATIVE) if c in recorded.contenders]
    if not problems or PLAIN not in recorded.contenders:
        return None
    figure = Figure(figsize=(8.6, 2.2 + 0.42 * len(problems)))
    axes = figure.subplots()
    height = 0.8 / len(compared)
    for k, contender in enumerate(compared):
        offset = (k - (len(compared) - 1) / 2) * height
        gains = [recorded.ratio(problem, PLAIN, to=contender) or 0 for problem in problems]
        color = LINES[contender]["color"]
        places = [i + offset for i in range(len(problems))]
        bars = axes.barh(places, gains, 0.92 * height, label=contender, color=color)
        if contender == NATIVE:
            axes.bar_label(bars, [f"{gain:.0f}x" for gain in gains], padding=3, color=color)
    color = LINES[PLAIN]["color"]
    axes.axvline(1, color=color, linewidth=1.5)
    axes.annotate(
        "1x: as fast as plain NumPy",
        (1, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 4),
        textcoords="offset points",
        color=color,
        fontsize=9,
    )
    axes.set_yticks(range(len(problems)), [p["name"] for p in problems])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.1, y=0.02)
    axes.set_xlabel("median time of plain NumPy / median time")
    figure.legend(loc="outside right upper")
    title(figure, "How many times faster than plain NumPy", not_quiet(recorded.run))
    caption(
        figure,
        f"{where(recorded)} {how_timed(recorded)}",
        "Float32 unless named. Plain NumPy: the twenty lines that people write.",
    )
    return figure


def time_of_models(recorded: Recorded) -> Figure | None:
    """One panel per model, from the smallest; a dot for each contender, from the slowest."""
    problems = sorted(
        (p for p in recorded.on_all_cores("model") if p["size"] > MODEL_SIZE),
        key=lambda problem: problem["size"],
    )
    if not problems:
        return None
    roofs = {*FLOORS, *READS}
    enough = min(2, len(problems))
    timed = [
        contender
        for contender in recorded.contenders
        if contender not in roofs and len(ran(recorded, problems, contender)) >= enough
    ]
    timed.sort(key=lambda c: -mean_of_logs(recorded, problems, c))
    width = max(8.6, 4.2 + 2.5 * len(problems))
    figure = Figure(figsize=(width, 2.2 + 0.3 * len(timed)))
    panels = figure.subplots(1, len(problems), sharey=True, squeeze=False)[0]
    for axes, problem in zip(panels, problems):
        axes.scatter([1] * len(timed), timed, 0)  # a line for each, in every panel
        medians = {c: ns for c in timed if (ns := recorded.median_ns(problem, c))}
        colors = [contender_color(c) for c in medians]
        axes.scatter(list(medians.values()), list(medians), 42, color=colors, zorder=3)
        for contender, ns in medians.items():
            axes.annotate(
                duration_label(ns),
                (ns, contender),
                xytext=(7, 0),
                textcoords="offset points",
                fontsize=8,
                va="center",
            )
        limit = recorded.limit_ns(problem, NATIVE)
        if limit:
            axes.axvline(limit, color="#555555", linestyle="--")
        axes.set_xscale("log")
        axes.set_title(problem["name"], fontsize=11, fontweight="normal")
        axes.set_xlabel(
            f"{problem['size'] / 1e6:.1f} M parameters\nin {problem['tensors']} tensors"
        )
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(FuncFormatter(lambda ns, _: duration_tick(ns)))
        lowest = min([*medians.values(), limit or math.inf])
        axes.set_xlim(lowest / 1.6, 6 * max(medians.values()))  # room for the labels
    panels[0].invert_yaxis()
    mark_ours(panels[0])
    title(figure, "Time of one step of a whole model", not_quiet(recorded.run))
    caption(
        figure,
        f"{where(recorded)} {how_timed(recorded)}",
        "Float32. The scale is logarithmic: a step to the right is a factor. Plain NumPy: the twenty "
        "lines that people write. Grey dots: not an Adafactor. Dashed line, where the run has it: the "
        f"{LIMIT}, on the same threads. Steps without RMS(param), or that carry it, have a read less to do.",
    )
    return figure


def ran(recorded: Recorded, problems: list[Problem], contender: str) -> list[Problem]:
    return [problem for problem in problems if recorded.result(problem, contender)]


def mean_of_logs(recorded: Recorded, problems: list[Problem], contender: str) -> float:
    """Relative to ours, so that it does not matter who sat out which."""
    ratios = [
        recorded.ratio(problem, contender, NATIVE) or 1
        for problem in ran(recorded, problems, contender)
    ]
    return sum(map(math.log, ratios)) / len(ratios)


def contender_color(contender: str) -> str:
    color: str = LINES.get(contender, {}).get("color", "#bbbbbb")
    return color


def nearness_to_the_limit(recorded: Recorded) -> Figure | None:
    """Times over the sums of the machine's own sweeps: 1 is as fast as its memory allows."""
    compared = recorded.among([NATIVE, UNSCALED, CARRIED, NUMBA])
    problems = [
        problem
        for problem in recorded.problems
        if problem["size"] >= FROM_MEMORY and recorded.over_limit(problem, NATIVE)
    ]
    counts = sorted({problem["threads"] for problem in problems})
    if not problems or not compared:
        return None
    panels_of = [[p for p in problems if p["threads"] == threads] for threads in counts]
    heights = [len(panel) for panel in panels_of]
    figure = Figure(figsize=(8.6, 2.4 + 0.5 * sum(heights)))
    panels = figure.subplots(len(counts), 1, squeeze=False, height_ratios=heights, sharex=True)
    height = 0.8 / len(compared)
    for axes, threads, panel in zip(panels[:, 0], counts, panels_of):
        for k, contender in enumerate(compared):
            ratios = [recorded.over_limit(problem, contender) or 0 for problem in panel]
            places = [i + (k - (len(compared) - 1) / 2) * height for i in range(len(panel))]
            line = LINES[contender]
            bars = axes.barh(
                places,
                ratios,
                0.92 * height,
                label=contender,
                color=line["color"],
                alpha=1 if contender in (NATIVE, NUMBA) else 0.45,
                hatch={CARRIED: "///"}.get(contender),
            )
            labels = [f"{ratio:.2f}" if ratio else "" for ratio in ratios]
            axes.bar_label(bars, labels, padding=3, fontsize=7)
        axes.axvline(1, color="#b0413e", linewidth=1.5)
        axes.set_yticks(range(len(panel)), [p["name"] for p in panel])
        axes.set_title(f"on {count(threads, 'thread')}", fontsize=11, fontweight="normal")
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.08, y=0.02)
    panels[0, 0].annotate(
        "the limit",
        (1, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 4),
        textcoords="offset points",
        color="#b0413e",
        fontsize=9,
    )
    panels[-1, 0].set_xlabel("median time / the limit of the same algorithm")
    panels[0, 0].legend(
        loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=2, ncols=2, fontsize=8
    )
    title(figure, "How near a step is to what memory allows", not_quiet(recorded.run))
    caption(
        figure,
        f"{where(recorded)} {how_timed(recorded)}",
        "The limit is measured in the same run, on the same threads: the fastest loops that read grad and "
        "param once each (grad alone without RMS(param), or carrying it), and the fastest param -= k*grad "
        "after them. A step is below it where a cache keeps for the second sweep what the first has read.",
    )
    return figure


def mark_ours(axes: Axes) -> None:
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in (NATIVE, ONE_CALL) else "normal")


def gain_from_threads(recorded: Recorded) -> Figure | None:
    scaled = [runs for runs in recorded.by_threads() if len(runs) > 1]
    if not scaled:
        return None
    figure = Figure(figsize=(8.6, 1.6 + 0.75 * len(scaled)))
    axes = figure.subplots()
    first, last = scaled[0][0], scaled[0][-1]
    loops = {NUMBA: [NUMBA], NATIVE: [NATIVE], "param -= k*grad": FLOORS}
    height = 0.8 / len(loops)
    for k, (name, fastest_of) in enumerate(loops.items()):
        gains = []
        for runs in scaled:
            one, all_ = (recorded.fastest_ns(p, fastest_of) for p in (runs[0], runs[-1]))
            gains.append(one / all_ if one and all_ else 0)
        places = [i + (k - 1) * height for i in range(len(scaled))]
        color = LINES[name]["color"]
        bars = axes.barh(places, gains, 0.92 * height, label=name, color=color)
        axes.bar_label(
            bars, [f"{gain:.2f}x" if gain else "" for gain in gains], padding=3, fontsize=8
        )
    ideal = last["threads"] / first["threads"]
    for ratio, name in ((1, "no gain"), (ideal, f"{ideal:g}x: as many cores")):
        axes.axvline(ratio, color="#b0413e", linewidth=1.5)
        axes.annotate(
            name,
            (ratio, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            color="#b0413e",
            fontsize=9,
            ha="center",
        )
    axes.set_yticks(range(len(scaled)), [runs[0]["name"] for runs in scaled])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12, y=0.03)
    axes.set_xlabel(f"median time on {first['threads']} / on {last['threads']}")
    figure.legend(loc="outside right upper")
    title(
        figure,
        f"What {last['threads']} threads give over {first['threads']}",
        not_quiet(recorded.run),
    )
    caption(
        figure,
        f"{where(recorded)} {how_timed(recorded)}",
        "Cores share the memory, and one of them takes a large part of what it gives: the grey bar, which "
        "only moves bytes, shows what is left for the others. More than the number of cores is no error: "
        "two cores have two caches, and what does not fit into one may fit into both, or a neighbour of "
        "this virtual machine was busy while one thread was timed.",
    )
    return figure


def where(recorded: Recorded) -> str:
    machine, software = recorded.run["machine"], recorded.run["software"]
    shown = {"torch", "transformers", "optax", "keras"}
    peers = {name: v for name, v in recorded.peer_versions.items() if name in shown}
    packages = {"NumPy": software["numpy"], "numba": software["numba"], **peers}
    versions = ", ".join(f"{name} {v.partition('+')[0]}" for name, v in packages.items())
    return f"{recorded.machine_named}, {machine['cores']} cores; {versions}."


def how_timed(recorded: Recorded) -> str:
    if recorded.has_cold:
        return "Medians of steps from cold caches, as in training."
    return "Medians of steps one after the other, from warm caches where they fit."


def duration_label(ns: float) -> str:
    return f"{ns / 1e9:.2g} s" if ns >= 1e9 else f"{ns / 1e6:.3g} ms"


def duration_tick(ns: float) -> str:
    for unit, factor in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= factor:
            return f"{ns / factor:g} {unit}"
    return f"{ns:g} ns"
