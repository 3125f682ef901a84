"""The picture of steps on torch's tensors."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from in_torch import OTHERS, is_half, named, ours, problems
from markdown import duration, not_quiet
from names import IN_TORCH
from recorded import Problem, Recorded
from style import LINES, caption, title


def times_of_steps(recorded: Recorded) -> Figure | None:
    """A panel for each model, dtype and number of threads, a bar for each optimizer."""
    shown = problems(recorded)
    if not shown:
        return None
    n_columns = 2
    n_rows = (len(shown) + 1) // n_columns
    figure = Figure(figsize=(11.5, 1.3 + 2.1 * n_rows))
    panels = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes, problem in zip(panels.flat, shown):
        draw_bars(axes, recorded, problem)
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    for column in range(1, n_columns):
        for axes in panels[:, column]:
            axes.set_yticklabels([])
    title(figure, "Time of one step of torch's optimizers on a CPU", not_quiet(recorded.run))
    versions = ", ".join(
        f"{name} {recorded.peer_versions[name].partition('+')[0]}"
        for name in ("torch", "transformers")
        if name in recorded.peer_versions
    )
    caption(
        figure,
        f"{recorded.machine_named}, "
        f"{recorded.run['machine']['cores']} cores; {versions}. Medians of steps from cold caches, as in "
        f"training. In brackets: how many steps of {IN_TORCH} fit into one. In bfloat16 parameters and "
        "gradients are. Grey: not an Adafactor; its state has twice the parameters' memory.",
    )
    return figure


def draw_bars(axes: Axes, recorded: Recorded, problem: Problem) -> None:
    own = ours(problem)
    raced = {
        IN_TORCH: own,
        **{name: half if is_half(problem) else name for name, half in OTHERS.items()},
    }
    timed = {
        name: ns
        for name, who in raced.items()
        if (ns := recorded.median_ns(problem, who)) is not None
    }
    bars = axes.barh(
        list(timed),
        [ns / 1e6 for ns in timed.values()],
        0.75,
        color=[LINES[name]["color"] for name in timed],
    )
    unit = timed[IN_TORCH]
    labels = [
        duration(ns) if name == IN_TORCH else f"{duration(ns)} ({ns / unit:.1f}x)"
        for name, ns in timed.items()
    ]
    axes.bar_label(bars, labels, padding=4, fontsize=9)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.28, y=0.03)
    axes.set_title(named(problem), fontsize=11)
    axes.set_xlabel("milliseconds")
    axes.get_yticklabels()[0].set_fontweight("bold")
