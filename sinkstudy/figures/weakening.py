"""The first-to-later-layer correlation against prompt length, and where it changes."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinkstudy.figures import messages
from sinkstudy.figures.style import PAGE, band, headline, length_axis, light_grid, new_figure, series_style, styled


@styled
def weakening_figure(curves: pd.DataFrame, weakening: pd.Series) -> Figure:
    """Correlation and base rate at every length at which uniform attention stays below the threshold.

    `curves`: the table of curves of one model and threshold, set `all`; `weakening`: its row of that table, whose
    length is marked with its interval.
    """
    figure, (ax,) = new_figure(PAGE, 2.9)
    informative = curves[curves["null_score"] < curves["threshold"]]
    followed = informative[informative["first_layer_sinks"] > 0]
    _line(ax, informative, "p_later", 0, "of all heads (base rate)")
    if followed.empty:
        text = "correlation undefined at every length:\nno sinks in the first layer"
        ax.text(0.5, 0.6, text, ha="center", va="center", transform=ax.transAxes)
    else:
        _line(ax, followed, "p_later_given_first", 1, "of first-layer sinks (correlation)")
    if pd.notna(weakening["length_low"]):
        low, high = weakening["length_low"], weakening["length_high"]
        ax.axvspan(low, high, color="0.85", zorder=0)
        label = f"best split: {int(weakening['length'])} tokens ({int(low)} to {int(high)})"
        ax.axvline(weakening["length"], color="0.35", linewidth=1, label=label)
    ax.set(ylabel="sinks in later layers (%)", ylim=(-2, 103))
    length_axis(ax, int(curves["n_tokens"].max()))
    ax.set_xlim(left=1.9)
    light_grid(ax)
    figure.legend(loc="outside lower center", ncols=3)
    first = curves.iloc[0]
    prompts = f"n = {int(curves['prompts'].max())} prompts, fewer at greater lengths; bands: 95% over prompts"
    headline(figure, messages.weakening(weakening), f"{first['model']}, sink score ≥ {first['threshold']:g}; {prompts}")
    return figure


def _line(ax: Axes, rows: pd.DataFrame, name: str, style: int, label: str) -> None:
    look = series_style(style)
    ax.plot(rows["n_tokens"], 100 * rows[name], **look, label=label)
    band(ax, rows["n_tokens"], 100 * rows[f"{name}_low"], 100 * rows[f"{name}_high"], look["color"])
