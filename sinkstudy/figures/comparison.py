"""Bars that set two settings beside each other."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sinkstudy.figures.style import COLOURS, new_figure, styled

_HATCHES = ("", "///", "...", "xx", "++")


@styled
def comparison_figure(comparison: pd.DataFrame, title: str) -> Figure:
    """Sink percentage, null-corrected score and first-to-later-layer correlation, a bar per side.

    `comparison` holds one comparison of the comparison table; bars are grouped by `group` and told apart by `side`.
    """
    panels = (
        ("sink_percent", "sink heads (% of all heads)"),
        ("mean_excess", "mean excess score"),
        ("correlation_percent", "first-to-later correlation (%)"),
    )
    groups, sides = comparison["group"].unique(), comparison["side"].unique()
    figure, axes = new_figure(min(9.0, 3.2 + 1.1 * len(groups) * 1.6), 2.9, columns=3)
    width = 0.8 / len(sides)
    for ax, (column, label) in zip(axes, panels, strict=True):
        top = 1.0 if column == "mean_excess" else 100.0
        for i, side in enumerate(sides):
            rows = comparison[comparison["side"] == side].set_index("group").reindex(groups)
            x = np.arange(len(groups)) + (i - (len(sides) - 1) / 2) * width
            values = rows[column].to_numpy(float)
            style = {
                "color": COLOURS[i % len(COLOURS)],
                "hatch": _HATCHES[i % len(_HATCHES)],
                "edgecolor": "white",
            }
            ax.bar(x, np.nan_to_num(values), width, label=side, **style)
            for place, value in zip(x, values, strict=True):
                text = (
                    "undefined"
                    if np.isnan(value)
                    else f"{round(value, 2) + 0:.2f}"
                    if column == "mean_excess"
                    else f"{value:.1f}"
                )
                size, turn = (5.5, 90) if np.isnan(value) or len(groups) > 3 else (6, 0)
                ax.text(
                    place,
                    max(0, np.nan_to_num(value)) + 0.015 * top,
                    text,
                    ha="center",
                    fontsize=size,
                    rotation=turn,
                )
        slant = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if len(groups) > 3 else {}
        ax.set_xticks(range(len(groups)), groups, **slant)
        ax.set(
            ylabel=label,
            ylim=(
                min(0, 1.1 * comparison[column].min(skipna=True)) if column == "mean_excess" else 0,
                1.15 * top,
            ),
        )
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(sides))
    figure.suptitle(title)
    return figure
