"""Bars that set settings beside each other."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinkstudy.figures import messages, style

_HATCHES = ("", "///", "...", "xx", "++")
_PANELS = (
    ("sink_percent", "sink heads\n(% of all heads)", 100.0, ".0f"),
    ("mean_excess", "mean excess\nscore", 1.0, ".2f"),
    ("correlation_percent", "first to later\nlayers (%)", 100.0, ".0f"),
)


@style.styled
def comparison_figure(comparison: pd.DataFrame, what: str) -> Figure:
    """Sink percentage, null-corrected score and first-to-later-layer correlation, a bar per side.

    `comparison` holds one comparison of the comparison table, and `what` says which; bars are grouped by `group`, with
    one style per `side`. An undefined value has no bar but a dash; what is undefined for all is left out and named.
    """
    groups, sides = comparison["group"].unique(), comparison["side"].unique()
    panels = [panel for panel in _PANELS if comparison[panel[0]].notna().any()]
    missing = [panel[1].replace("\n", " ") for panel in _PANELS if panel not in panels]
    figure, axes = style.new_figure(style.PAGE, 1.1 + 0.95 * len(panels), rows=len(panels), sharex=True)
    for ax, (column, label, top, form) in zip(axes, panels, strict=True):
        values = comparison.pivot(index="group", columns="side", values=column).reindex(index=groups, columns=sides)
        _bars(ax, values, top, form)
        ax.set(ylabel=label, ylim=(1.2 * min(0, values.min().min()), 1.22 * top))
        ax.set_yticks(np.linspace(0, top, 3))
    slant = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(groups) > 6 else {}
    axes[-1].set_xticks(range(len(groups)), groups, **slant)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(sides))
    counts = [f"{n:.0f}" for n in (comparison["prompts"].min(), comparison["prompts"].max()) if n == n]
    of = f"sink score ≥ {comparison['threshold'].iloc[0]:g}; prompts: n = {' to '.join(dict.fromkeys(counts))}"
    undefined = f"; undefined for all: {', '.join(missing)}" if missing else ""
    return style.headline(figure, messages.comparison(comparison), f"{what}; {of}; –: undefined{undefined}")


def _bars(ax: Axes, values: pd.DataFrame, top: float, form: str) -> None:
    """A group of bars per row of `values`, one per column, each with its value above it."""
    width = 0.84 / values.shape[1]
    size = 6.5 if values.size <= 24 else 5.5 if values.size <= 36 else 4.5
    for i, (side, heights) in enumerate(values.items()):
        x = np.arange(len(values)) + (i - (values.shape[1] - 1) / 2) * width
        look = {"color": style.COLOURS[i % len(style.COLOURS)], "hatch": _HATCHES[i % len(_HATCHES)]}
        ax.bar(x, heights.fillna(0), width, label=side, edgecolor="white", **look)
        for place, value in zip(x, heights, strict=True):
            # A zero is written with one digit, because its label would touch the neighbouring one.
            text = "–" if np.isnan(value) else f"{value:{form}}" if round(value, 2) else "0"
            ax.text(place, max(0, np.nan_to_num(value)) + 0.02 * top, text, ha="center", fontsize=size)
