"""The pictures of a run, drawn from its JSON alone."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter

from names import (
    FLOOR,
    IN_PLACE,
    NATIVE,
    NUMBA,
    ONE_CALL,
    OPTAX,
    PLAIN,
    READ,
    TORCH,
    TORCH_ADAMW,
    TRANSFORMERS,
)
from recorded import Problem, Recorded
from style import LINES, STYLE, caption, title

ROOF = (FLOOR, READ)
# In the picture over sizes one line stands for a library, or it would hold fourteen.
OVER_SIZES = [PLAIN, TORCH, TRANSFORMERS, OPTAX, NUMBA, NATIVE, TORCH_ADAMW, FLOOR]
MODEL_SIZE = 10**7  # smaller ones are for comparison, in the tables


def draw(recorded: Recorded) -> list[Path]:
    """Write each picture that the run has figures for beside its JSON; return their paths."""
    pictures = {
        "size": time_against_size,
        "gain": gain_over_plain_numpy,
        "models": time_of_models,
        "roofline": share_of_roof,
        "threads": gain_from_threads,
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
    figure = Figure(figsize=(8.6, 5.4))
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
    for problem in problems:
        mark_gain(axes, problem, recorded)

    axes.set(
        xscale="log",
        yscale="log",
        title="Time of one Adafactor step on a float32 matrix",
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
    caption(
        figure,
        where(recorded),
        "In blue: how many times faster than plain NumPy, the twenty lines that people write. Small steps "
        "are limited by the cost of a call from Python, large ones by the memory: the dashed line only "
        "reads param and grad once and writes param, the least that a step in place must do.",
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
    figure = Figure(figsize=(8.6, 1.4 + 0.42 * len(problems)))
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
    axes.axvline(1, color=LINES[PLAIN]["color"], linewidth=1, label=PLAIN)
    axes.set_yticks(range(len(problems)), [p["name"] for p in problems])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.1, y=0.02)
    axes.set(
        title="How many times faster than plain NumPy",
        xlabel="median time of plain NumPy / median time",
    )
    axes.legend(loc="best")
    caption(
        figure,
        f"{where(recorded)} Float32 unless named. Plain NumPy: the twenty lines that people write.",
    )
    return figure


def time_of_models(recorded: Recorded) -> Figure | None:
    """One panel per model, from the smallest; a bar for each contender, from the slowest."""
    problems = sorted(
        (p for p in recorded.on_all_cores("model") if p["size"] > MODEL_SIZE),
        key=lambda problem: problem["size"],
    )
    if not problems:
        return None
    ran = [c for c in recorded.contenders if all(recorded.result(p, c) for p in problems)]
    timed = [contender for contender in ran if contender != READ]
    timed.sort(key=lambda c: -sum(math.log(recorded.median_ns(p, c) or 1) for p in problems))
    width = max(8.6, 2.2 + 2.5 * len(problems))
    figure = Figure(figsize=(width, 1.6 + 0.3 * len(timed)))
    panels = figure.subplots(1, len(problems), sharey=True, squeeze=False)[0]
    for axes, problem in zip(panels, problems):
        medians = [recorded.median_ns(problem, contender) or 1 for contender in timed]
        bars = axes.barh(timed, medians, 0.78, color=[bar_color(c) for c in timed])
        axes.bar_label(bars, [duration_label(ns) for ns in medians], padding=3, fontsize=8)
        axes.set_xscale("log")
        axes.set_title(problem["name"], fontsize=11, fontweight="normal")
        axes.set_xlabel(
            f"{problem['size'] / 1e6:.1f} M parameters\nin {problem['tensors']} tensors"
        )
        axes.grid(axis="y", visible=False)
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(FuncFormatter(lambda ns, _: duration_tick(ns)))
        axes.set_xlim(min(medians) / 2, 6 * max(medians))  # room for the labels
    panels[0].invert_yaxis()
    mark_ours(panels[0])
    title(figure, "Time of one step of a whole model")
    caption(
        figure,
        where(recorded),
        "Float32, medians, logarithmic scale. Plain NumPy: the twenty lines that people write. "
        "Grey: not an Adafactor.",
    )
    return figure


def bar_color(contender: str) -> str:
    color: str = LINES.get(contender, {}).get("color", "#bbbbbb")
    return color


def share_of_roof(recorded: Recorded) -> Figure | None:
    """Bytes that the algorithm has to move over the time it took, for the largest square or so."""
    problems = [p for p in recorded.on_all_cores("size") if recorded.result(p, FLOOR)]
    if not problems:
        return None
    problem = max(problems, key=lambda problem: problem["size"])
    speeds = {c: recorded.gigabytes_per_s(problem, c) or 0 for c in recorded.contenders}
    timed = sorted((c for c in speeds if c not in ROOF and speeds[c]), key=speeds.__getitem__)
    figure = Figure(figsize=(8.6, 1.8 + 0.32 * len(timed)))
    axes = figure.subplots()
    colors = [bar_color(contender) for contender in timed]
    bars = axes.barh(timed, [speeds[c] for c in timed], 0.78, color=colors)
    axes.bar_label(bars, [f"{speeds[c]:.1f}" for c in timed], padding=3, fontsize=8)
    for contender in ROOF:
        if speeds.get(contender):
            line = {"color": "#555555", "linestyle": LINES[contender]["linestyle"], "zorder": 0}
            axes.axvline(speeds[contender], label=contender, **line)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    axes.set_xlabel("GB/s: bytes that the algorithm has to move / median time")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(ROOF), borderaxespad=0)
    title(figure, f"Who is limited by memory: a step of {problem['name']} float32")
    mark_ours(axes)
    caption(
        figure,
        where(recorded),
        "Grey lines: what the memory gives to loops that only read, or read and write. Near them a "
        "step is as fast as its algorithm allows; far from them it moves more than it has to, in "
        "temporaries, or does not keep the memory busy.",
    )
    return figure


def mark_ours(axes: Axes) -> None:
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in (NATIVE, ONE_CALL) else "normal")


def gain_from_threads(recorded: Recorded) -> Figure | None:
    scaled = [runs for runs in recorded.by_threads() if len(runs) > 1]
    if not scaled:
        return None
    figure = Figure(figsize=(8.6, 3.4))
    panels = figure.subplots(1, len(scaled), sharey=True, squeeze=False)[0]
    for axes, runs in zip(panels, scaled):
        counts = [problem["threads"] for problem in runs]
        axes.plot(counts, counts, color="#cccccc", linewidth=1, label="ideal")
        for contender in (NUMBA, NATIVE, FLOOR):
            medians = [recorded.median_ns(problem, contender) for problem in runs]
            gains = [medians[0] / median for median in medians if median and medians[0]]
            if len(gains) == len(counts):
                axes.plot(counts, gains, label=contender, **LINES[contender])
        axes.set_title(runs[0]["name"], fontsize=11, fontweight="normal")
        axes.set_xlabel("threads")
        axes.set_xticks(counts)
    panels[0].set_ylabel("times faster than on 1")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    title(figure, "What more threads give")
    caption(
        figure,
        where(recorded),
        "Out of cache, threads share the memory's bandwidth; the dashed line, which only moves bytes, "
        "shows how far that goes. Above ideal: two cores have two caches.",
    )
    return figure


def where(recorded: Recorded) -> str:
    machine, software = recorded.run["machine"], recorded.run["software"]
    shown = {"torch", "transformers", "optax", "keras"}
    peers = {name: v for name, v in recorded.peer_versions.items() if name in shown}
    packages = {"NumPy": software["numpy"], "numba": software["numba"], **peers}
    versions = ", ".join(f"{name} {v.partition('+')[0]}" for name, v in packages.items())
    return f"{machine['processor']}, {machine['cores']} cores; {versions}."


def duration_label(ns: float) -> str:
    return f"{ns / 1e9:.2g} s" if ns >= 1e9 else f"{ns / 1e6:.3g} ms"


def duration_tick(ns: float) -> str:
    for unit, factor in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= factor:
            return f"{ns / factor:g} {unit}"
    return f"{ns:g} ns"
