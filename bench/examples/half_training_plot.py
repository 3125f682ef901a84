"""The picture of trainings in half precision: their losses, and how far from float32's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from examples.transformer import Array
from style import STYLE, caption, title

BAND: dict[str, Any] = {"color": "#555555", "alpha": 0.3, "linewidth": 0}
LINES: list[dict[str, Any]] = [  # on top of each other, where they agree
    {"color": "#b0413e", "linewidth": 2},
    {"color": "#1d4e89", "linewidth": 3.4, "alpha": 0.55},
    {"color": "#e09f3e", "linewidth": 1.8},
    {"color": "#222222", "linewidth": 1.2, "linestyle": (0, (1, 2))},
]
WINDOWS = 12  # of smoothing, in a training
LABELLED = (1, 2, 3, 4, 5, 7)  # times powers of ten
BANDS = 2.5  # shown of differences, in the band's largest half width


@dataclass(frozen=True)
class Panel:
    heading: str
    reference: Array  # losses of float32, one row for each order of the data, one column for a step
    others: Mapping[str, Array]  # of the other ways to store parameters, by name


def draw(panels: list[Panel], what: str, path: Path) -> None:
    """Above the losses, below what they are above the mean of `what` they are compared to."""
    with matplotlib.rc_context({**STYLE, "axes.titlesize": 11}):
        figure = Figure(figsize=(11.5, 6.6))
        columns = figure.subplots(2, len(panels), sharex="col", height_ratios=(3, 2)).T
        for (losses, differences), panel in zip(columns, panels):
            draw_losses(losses, panel, what)
            draw_differences(differences, panel)
        columns[0][0].set_ylabel("training loss, nats")
        columns[0][1].set_ylabel(f"less the mean of {what}'s")
        handles, labels = columns[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
        title(figure, "Training in bfloat16")
        orders = len(panels[0].reference)
        caption(
            figure,
            f"Running means over 1/{WINDOWS} of the steps. Grey: the lowest and the highest of {orders} runs "
            f"of {what}, each with its own order of the data. Lines: means of {orders} runs "
            "with the same orders. To nearest, steps of less than half a unit in the last place are "
            "lost; where their line is missing below, it is off the scale.",
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def draw_losses(axes: Axes, panel: Panel, what: str) -> None:
    reference = smoothed(panel.reference)
    x = middles(panel.reference)
    axes.fill_between(x, reference.min(axis=0), reference.max(axis=0), label=what, **BAND)
    for (name, losses), line in zip(panel.others.items(), LINES):
        axes.plot(x, smoothed(losses).mean(axis=0), label=name, **line)
    axes.set(title=panel.heading, yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=LABELLED))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()


def draw_differences(axes: Axes, panel: Panel) -> None:
    reference = smoothed(panel.reference)
    centre = reference.mean(axis=0)
    x = middles(panel.reference)
    band = reference.min(axis=0) - centre, reference.max(axis=0) - centre
    axes.fill_between(x, *band, **BAND)
    for losses, line in zip(panel.others.values(), LINES):
        axes.plot(x, smoothed(losses).mean(axis=0) - centre, **line)
    reach = BANDS * float(np.abs(band).max())
    axes.set(ylim=(-reach, reach), xlabel="step")


def smoothed(losses: Array) -> Array:
    """Running means along each row, of the windows that lie within it."""
    width = window(losses)
    sums = np.cumsum(np.pad(losses, ((0, 0), (1, 0))), axis=1)
    means: Array = (sums[:, width:] - sums[:, :-width]) / width
    return means


def middles(losses: Array) -> Array:
    """The steps that `smoothed` has means around."""
    width = window(losses)
    return (width + 1) / 2 + np.arange(losses.shape[1] - width + 1)


def window(losses: Array) -> int:
    steps: int = losses.shape[1]
    return 1 + steps // WINDOWS
