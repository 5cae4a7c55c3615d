"""The first-to-later-layer correlation against prompt length, and where it changes."""

import pandas as pd
from matplotlib.figure import Figure

from sinkstudy.figures import messages, style


@style.styled
def weakening_figure(curves: pd.DataFrame, weakening: pd.Series) -> Figure:
    """Correlation and base rate at every length at which uniform attention stays below the threshold.

    `curves`: the table of curves of one model and threshold, set `all`; `weakening`: its row of that table, whose
    length is marked with its interval.
    """
    figure, (ax,) = style.new_figure(style.PAGE, 2.9)
    informative = curves[curves["null_score"] < curves["threshold"]]
    followed = informative[informative["first_layer_sinks"] > 0]
    style.length_curve(ax, 0, informative, "p_later", 100, label="of all heads (base rate)")
    if followed.empty:
        text = "correlation undefined at every length:\nno sinks in the first layer"
        ax.text(0.5, 0.6, text, ha="center", va="center", transform=ax.transAxes)
    else:
        label = "of first-layer sinks (correlation)"
        style.length_curve(ax, 1, followed, "p_later_given_first", 100, label=label)
    if pd.notna(weakening["length_low"]):
        low, high = weakening["length_low"], weakening["length_high"]
        ax.axvspan(low, high, color="0.85", zorder=0)
        label = f"best split: {weakening['length']:.0f} tokens ({low:.0f} to {high:.0f})"
        ax.axvline(weakening["length"], color="0.35", linewidth=1, label=label)
    ax.set(ylabel="sinks in later layers (%)", ylim=(-2, 103))
    style.length_axis(ax, curves["n_tokens"].max())
    ax.set_xlim(left=1.9)
    figure.legend(loc="outside lower center", ncols=3)
    first = curves.iloc[0]
    prompts = f"n = {curves['prompts'].max()} prompts, fewer at greater lengths; bands: 95% over prompts"
    details = f"{first['model']}, sink score ≥ {first['threshold']:g}; {prompts}"
    return style.headline(figure, messages.weakening(weakening), details)
