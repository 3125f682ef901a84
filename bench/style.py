"""What all pictures share: a line style for each contender, and where titles and captions stand."""

from __future__ import annotations

import textwrap
from typing import Any

from matplotlib.figure import Figure

from names import (
    CARRIED,
    FLOOR,
    IN_PLACE,
    IN_TORCH,
    KERAS,
    NATIVE,
    NUMBA,
    ONE_CALLS,
    OPTAX,
    PLAIN,
    READ,
    TORCH,
    TORCH_ADAMW,
    TORCH_COMPILED,
    TORCH_FOREACH,
    TRANSFORMERS,
    UNSCALED,
)

LINES: dict[str, dict[str, Any]] = {
    PLAIN: {"color": "#b0413e", "marker": "s"},
    IN_PLACE: {"color": "#e09f3e", "marker": "D"},
    NUMBA: {"color": "#4a8c5f", "marker": "^"},
    NATIVE: {"color": "#1d4e89", "marker": "o", "linewidth": 2.6, "zorder": 5},
    IN_TORCH: {"color": "#1d4e89", "marker": "o", "linewidth": 2.6, "zorder": 5},
    UNSCALED: {"color": "#1d4e89", "marker": "o", "linestyle": ":", "markerfacecolor": "white"},
    CARRIED: {"color": "#1d4e89", "marker": "o", "linestyle": "--"},
    **{call: {"color": "#1d4e89"} for call in ONE_CALLS},
    FLOOR: {"color": "#555555", "linestyle": "--"},
    READ: {"color": "#999999", "linestyle": "-."},
    TORCH: {"color": "#d9622b", "marker": "v"},
    TORCH_FOREACH: {"color": "#d9622b", "marker": "v", "linestyle": ":"},
    TORCH_COMPILED: {"color": "#d9622b", "marker": "v", "linestyle": "--"},
    TRANSFORMERS: {"color": "#c9a227", "marker": "P"},
    OPTAX: {"color": "#7b5ea7", "marker": "X"},
    KERAS: {"color": "#7b5ea7", "marker": "X", "linestyle": ":"},
    TORCH_ADAMW: {"color": "#8a8a8a", "marker": "*"},
}
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "grid.color": "#e4e4e4",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.markersize": 5,
}
CHARACTERS_PER_INCH = 14.8  # of a caption


def title(figure: Figure, text: str, warning: str = "") -> None:
    """Above all; a warning of what the figures are not fit for stands where nobody overlooks it."""
    color = "#b00020" if warning else "black"
    both = f"{text}\n{warning}" if warning else text
    figure.suptitle(both, fontsize=13, fontweight="bold", x=0.01, ha="left", color=color)


def caption(figure: Figure, *paragraphs: str) -> None:
    """Write the paragraphs below, wrapped to the width of the figure."""
    width = int(figure.get_figwidth() * CHARACTERS_PER_INCH)
    text = "\n".join(textwrap.fill(paragraph, width) for paragraph in paragraphs)
    figure.supxlabel(text, fontsize=9, color="#444444", x=0.01, ha="left")
