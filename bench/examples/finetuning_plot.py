"""The picture of a fine-tuning, drawn from its JSON alone: losses, times of a step, bytes of state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from markdown import count, three_digits
from names import IN_TORCH
from style import LINES, STYLE, caption, title

Result = dict[str, Any]
Training = dict[str, Any]

# Ours lie broad and pale below the others', so that lines on top of each other are seen.
OURS = {
    "": "#1d4e89",
    'masters="float32"': "#1d4e89",
    'rounding="stochastic"': "#3a9bdc",
    'rounding="nearest"': "#7fc8c2",
}
BROAD: dict[str, Any] = {"linewidth": 6, "alpha": 0.45, "solid_capstyle": "round", "zorder": 2}
THIN: dict[str, Any] = {"linewidth": 1.6, "zorder": 3}
DEFAULT_EPS = "default eps"
GAP = 0.9  # between the bars of two dtypes


def label(training: Training) -> str:
    return ", ".join(filter(None, (training["optimizer"], training["option"])))


def draw(result: Result, path: Path) -> None:
    by_dtype: dict[str, list[Training]] = {}
    for training in result["trainings"]:
        by_dtype.setdefault(training["dtype"], []).append(training)
    with matplotlib.rc_context({**STYLE, "axes.titlesize": 11}):
        figure = Figure(figsize=(13.5, 9.6))
        parts: Any = figure.subfigures(2, 1, height_ratios=(1, 1))
        losses, bars = parts
        panels = losses.subplots(1, len(by_dtype), sharey=True)
        for axes, (dtype, trainings) in zip(panels, by_dtype.items()):
            draw_losses(axes, dtype, trainings)
        panels[0].set_ylabel("loss of text that none has read,\nnats per character")
        steps, state = bars.subplots(1, 2, sharey=True)
        draw_bars(steps, result, lambda each: each["step_ms"], "ms")
        steps.set(title="Time of the optimizer's step", xlabel="milliseconds")
        draw_bars(state, result, lambda each: each["state_bytes"] / result["parameters"], "")
        state.set(title="Memory of the optimizer's state", xlabel="bytes for each parameter")
        steps.invert_yaxis()
        title(figure, "A transformer of torch, fine-tuned on a CPU")
        caption(figure, *about(result))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def about(result: Result) -> list[str]:
    machine, trainings = result["machine"], result["trainings"]
    peers = result["software"]["peers"]
    versions = ", ".join(
        f"{name} {peers[name].partition('+')[0]}"
        for name in ("torch", "transformers")
        if name in peers
    )
    model_ms = [
        f"{median(each['model_ms'] for each in trainings if each['dtype'] == dtype):.0f} ms in {dtype}"
        for dtype in dict.fromkeys(each["dtype"] for each in trainings)
    ]
    network = (
        f"{result['parameters'] / 1e6:.1f} M parameters in {result['tensors']} tensors, which had learned "
        "Python source code before, learn the prose of Python's manual: one character after the other, from "
        "the same texts in the same order. In bfloat16 parameters, gradients and all that the network "
        "computes are. Ours and torch's Adafactor have eps=(1e-7, 1e-3) but for the dashed line: torch's default "
        "is 2^-7 in bfloat16, too large for these gradients."
    )
    timed = (
        f"{machine['processor']}, {count(result['threads'], 'thread')}; {versions}. Times are medians of steps in turns; "
        f"the forward and backward pass before each takes {' and '.join(model_ms)}."
    )
    return [network, timed]


def draw_losses(axes: Axes, dtype: str, trainings: list[Training]) -> None:
    for each in trainings:  # ours first
        axes.plot(
            each["at_steps"],
            each["held_out_losses"],
            label=f"{label(each)}: {each['held_out_losses'][-1]:.3f}",
            **line(each),
        )
    axes.set(title=f"In {dtype}", xlabel="step of fine-tuning")
    axes.legend(title="at the end", alignment="left")


def color(training: Training) -> str:
    if training["optimizer"] == IN_TORCH:
        return OURS[training["option"]]
    return str(LINES[training["optimizer"]]["color"])


def line(training: Training) -> dict[str, Any]:
    style = BROAD if training["optimizer"] == IN_TORCH else THIN
    dashed = {"linestyle": "--"} if training["option"] == DEFAULT_EPS else {}
    return {"color": color(training), **style, **dashed}


def draw_bars(axes: Axes, result: Result, of: Callable[[Training], float], unit: str) -> None:
    """A bar for each training, those of a dtype together below its name."""
    trainings = result["trainings"]
    dtypes = list(dict.fromkeys(each["dtype"] for each in trainings))
    places = [i + GAP * dtypes.index(each["dtype"]) for i, each in enumerate(trainings)]
    values = [of(each) for each in trainings]
    bars = axes.barh(places, values, 0.78, color=[color(each) for each in trainings])
    labels = [f"{three_digits(value)} {unit}".strip() for value in values]
    axes.bar_label(bars, labels, padding=4, fontsize=9)
    for dtype in dtypes:
        first = next(p for p, each in zip(places, trainings) if each["dtype"] == dtype)
        axes.annotate(
            dtype,
            (0, first - 0.75),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            fontweight="bold",
        )
    axes.set_yticks(places, [label(each) for each in trainings])
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.18)
    axes.set_ylim(places[0] - 1.1, places[-1] + 0.6)
    for each, name in zip(trainings, axes.get_yticklabels()):
        name.set_fontweight("bold" if each["optimizer"] == IN_TORCH else "normal")
