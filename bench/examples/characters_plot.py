"""The picture of a training: its losses, and what the optimizer reports of its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.transformer import Array
from style import LINES, STYLE, caption, title

# A tensor of heads, two matrices, and two that step by lr itself.
TOLD = {
    "block0.attention.query": "#1d4e89",
    "block1.mlp.down": "#4a8c5f",
    "output": "#e09f3e",
    "characters": "#b0413e",
    "block0.mlp.norm.gain": "#7b5ea7",
}
LIMIT: dict[str, Any] = {"color": "#555555", "linestyle": "--", "linewidth": 1}


@dataclass(frozen=True)
class Drawn:
    """What the picture is made of; all sequences are over steps."""

    losses: dict[str, Sequence[float]]  # of the optimizers by name
    resumed_at: int
    rates: dict[str, Sequence[float]]  # lr of the groups by name
    reports: Sequence[Any]
    max_grad_norm: float


def draw(drawn: Drawn, path: Path) -> None:
    with matplotlib.rc_context({**STYLE, "axes.titlesize": 11, "lines.linewidth": 1}):
        figure = Figure(figsize=(14.5, 7.4))
        panels = figure.subplots(2, 4, sharex=True).ravel()
        draw_losses(panels[0], drawn)
        draw_rates(panels[1], drawn)
        draw_grad_norm(panels[2], drawn)
        draw_column(panels[3], drawn, "rms_grad", "RMS(grad), before any clip")
        draw_column(panels[4], drawn, "rms_u", "RMS(u), before its clip")
        draw_column(panels[5], drawn, "clip_divisor", "The clip's divisor of u")
        draw_column(panels[6], drawn, "rms_param", "RMS(param)")
        draw_column(panels[7], drawn, "step_size", "Step size")
        panels[4].axhline(1, **LIMIT)
        for axes in (panels[3], panels[7]):
            axes.set_yscale("log")
        for axes in (panels[1], panels[7]):  # both end near 0
            axes.set_ylim(bottom=axes.get_ylim()[1] / 3e3)
        for axes in panels[4:]:
            axes.set_xlabel("step")
        handles, labels = panels[7].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
        title(figure, "A transformer in training, and what each step says of itself")
        caption(
            figure,
            f"In colour: each step, and means of {window(drawn)}, for {len(TOLD)} of {len(drawn.reports[0].names)} tensors. "
            "RMS(param) is computed only where steps are in proportion to it, unlike those of "
            f"{' and '.join(name for name in TOLD if not scaled(drawn, name))}.",
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def draw_losses(axes: Axes, drawn: Drawn) -> None:
    styles: list[dict[str, Any]] = [{"linewidth": 4, "alpha": 0.45}, {}]
    for (name, losses), style in zip(drawn.losses.items(), styles):
        axes.plot(steps(losses), losses, label=name, color=LINES[name]["color"], **style)
    axes.axvline(drawn.resumed_at, ymax=0.6, label="resumed from here: same bits", **LIMIT)
    axes.set(title="Training loss", ylabel="nats per character", ylim=(0, None))
    axes.legend()


def draw_rates(axes: Axes, drawn: Drawn) -> None:
    for (name, rates), color in zip(drawn.rates.items(), ("#222222", "#888888")):
        axes.plot(steps(rates), rates, label=name, color=color)
    axes.set(title="Learning rate", yscale="log")
    axes.legend()


def draw_grad_norm(axes: Axes, drawn: Drawn) -> None:
    norms = [report.grad_norm for report in drawn.reports]
    axes.plot(steps(norms), norms, color="#222222", linewidth=0.7)
    axes.axhline(drawn.max_grad_norm, label="longer ones are clipped", **LIMIT)
    axes.set(title="Global gradient norm", yscale="log")
    axes.legend()


def draw_column(axes: Axes, drawn: Drawn, column: str, heading: str) -> None:
    """Every step faintly, and over it means of some."""
    names = drawn.reports[0].names
    values = np.array([getattr(report, column) for report in drawn.reports])
    for name, color in TOLD.items():
        told = values[:, names.index(name)]
        axes.plot(steps(told), told, color=color, linewidth=0.5, alpha=0.25)
        means = np.convolve(told, np.full(window(drawn), 1 / window(drawn)), mode="valid")
        middle = (window(drawn) + 1) / 2  # of the first window
        axes.plot(middle + np.arange(len(means)), means, label=name, color=color, linewidth=1.4)
    axes.set(title=heading)


def window(drawn: Drawn) -> int:
    return 1 + len(drawn.reports) // 32


def scaled(drawn: Drawn, name: str) -> bool:
    return not math.isnan(drawn.reports[0][name]["rms_param"])


def steps(values: Sequence[float] | Array) -> range:
    return range(1, len(values) + 1)
