"""The picture of what sharded steps cost: measured exchanges, and steps that are extrapolated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from exchange_costs import Network, halving_doubling, ring
from markdown import not_quiet
from models import llama3_70b
from sharding_model import (
    ASSUMED,
    EXTRAPOLATED,
    HOST,
    MEMORY_BYTES_PER_S,
    WAYS,
    cost,
    shown_exchange,
)
from style import STYLE, caption, title

COLORS = {2: "#1d4e89", 3: "#4a8c5f", 4: "#d9622b"}
WAY_COLORS = {"rows": "#b0413e", "grid": "#1d4e89", "flat": "#e09f3e"}


def draw(run: dict[str, Any], path: Path) -> None:
    """Left what was measured, right what follows from it."""
    here = Network(**run["fitted"])
    with matplotlib.rc_context({**STYLE, "axes.titlesize": 11}):
        figure = Figure(figsize=(12.5, 5.6))
        exchanges, *steps = figure.subplots(1, 3, width_ratios=(1, 1, 1))
        draw_exchanges(exchanges, run, here)
        for axes, network in zip(steps, (ASSUMED[0], here)):
            draw_steps(axes, network)
        steps[0].legend()  # of both, where it hides no line
        title(figure, "Sharded steps: exchanges measured, more ranks extrapolated", not_quiet(run))
        caption(
            figure,
            f"Points: all-reduces by gloo on {run['machine']['processor']}, {run['machine']['cores']} cores, "
            f"{run['date']}; hollow ones of more ranks than cores, which share them. Lines: alpha = "
            f"{here.latency_s * 1e6:.3g} µs a message, 1 / beta = {1e-9 / here.s_per_byte:.3g} GB/s, fitted to "
            "the filled points. "
            f"Broken lines: EXTRAPOLATED, nothing was measured there. Llama-3-70B, {MEMORY_BYTES_PER_S / 1e9:g} GB/s of "
            f"memory a rank, {HOST} ranks a host; all-reduces by halving and doubling, and by the ring that "
            "gloo has (dotted).",
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def draw_exchanges(axes: Axes, run: dict[str, Any], here: Network) -> None:
    timings = run["timings"]
    for n in sorted({timing["ranks"] for timing in timings}):
        own = [timing for timing in timings if timing["ranks"] == n]
        sizes = np.array([timing["n_bytes"] for timing in own], float)
        axes.plot(
            sizes,
            [timing["seconds"] * 1e6 for timing in own],
            "o",
            color=COLORS[n],
            markerfacecolor=COLORS[n] if n <= run["machine"]["cores"] else "none",
            label=f"{n} ranks",
        )
        between = np.geomspace(sizes[0], sizes[-1], 100)
        axes.plot(
            between, [ring(size, n, here) * 1e6 for size in between], color=COLORS[n], linewidth=1.2
        )
    axes.set(
        xscale="log", yscale="log", xlabel="bytes", ylabel="µs", title="An all-reduce, measured"
    )
    axes.legend()


def draw_steps(axes: Axes, network: Network) -> None:
    shapes = list(llama3_70b().values())
    for way in WAYS:
        color = WAY_COLORS[way]
        for all_reduce, line in ((halving_doubling, "--"), (ring, ":")):
            costs = [cost(shapes, way, n, network, all_reduce) for n in EXTRAPOLATED]
            label = f"{way}: exchange" if line == "--" else None
            seconds = [one.exchange for one in costs]
            axes.plot(EXTRAPOLATED, np.array(seconds) * 1e3, line, label=label, color=color)
    shown = [shown_exchange(shapes, n, network, halving_doubling) for n in EXTRAPOLATED]
    label = "rows: not hidden by buckets"
    axes.plot(EXTRAPOLATED, np.array(shown) * 1e3, "-.", label=label, color=WAY_COLORS["rows"])
    sweeps = [cost(shapes, "rows", n, network, ring).sweeps for n in EXTRAPOLATED]
    axes.plot(EXTRAPOLATED, np.array(sweeps) * 1e3, "--", color="#555555", label="sweeps")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="ranks",
        ylabel="ms of a step",
        title=f"EXTRAPOLATED: {network.name}",
    )
    axes.set_xticks([8, 64, 512, 4096], ["8", "64", "512", "4096"])
