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
from style import LINES, STYLE, caption, title

Result = dict[str, Any]
Training = dict[str, Any]

# Of several trainings with ours in one dtype; the first has the line of all its pictures.
OPTION_LINES: dict[str, dict[str, Any]] = {
    "": {},
    'masters="float32"': {},
    'rounding="stochastic"': {"linestyle": (0, (1, 1.2)), "color": "#5fa8d3", "linewidth": 3.4},
    'rounding="nearest"': {"linestyle": "--", "linewidth": 1.6},
}


def label(training: Training) -> str:
    return ", ".join(filter(None, (training["optimizer"], training["option"])))


def draw(result: Result, path: Path) -> None:
    by_dtype: dict[str, list[Training]] = {}
    for training in result["trainings"]:
        by_dtype.setdefault(training["dtype"], []).append(training)
    with matplotlib.rc_context({**STYLE, "axes.titlesize": 11}):
        figure = Figure(figsize=(13.5, 9))
        parts: Any = figure.subfigures(2, 1, height_ratios=(1.15, 1))
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
        "computes are."
    )
    timed = (
        f"{machine['processor']}, {count(result['threads'], 'thread')}; {versions}. Times are medians of steps in turns; "
        f"the forward and backward pass before each takes {' and '.join(model_ms)}."
    )
    return [network, timed]


def draw_losses(axes: Axes, dtype: str, trainings: list[Training]) -> None:
    for each in trainings:
        axes.plot(
            each["at_steps"],
            each["held_out_losses"],
            label=f"{label(each)}: {each['held_out_losses'][-1]:.3f}",
            **line(each),
        )
    axes.set(title=f"In {dtype}", xlabel="step of fine-tuning")
    axes.legend(title="at the end", alignment="left")


def line(training: Training) -> dict[str, Any]:
    own = {**LINES[training["optimizer"]], "marker": None}
    return {**own, **OPTION_LINES[training["option"]]}


def draw_bars(axes: Axes, result: Result, of: Callable[[Training], float], unit: str) -> None:
    trainings = result["trainings"]
    values = [of(each) for each in trainings]
    colors = [line(each)["color"] for each in trainings]
    bars = axes.barh(range(len(trainings)), values, 0.75, color=colors)
    labels = [f"{three_digits(value)} {unit}".strip() for value in values]
    axes.bar_label(bars, labels, padding=4, fontsize=9)
    axes.set_yticks(
        range(len(trainings)), [f"{label(each)}, {each['dtype']}" for each in trainings]
    )
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.15, y=0.02)
