"""Scores and sink percentage against prompt length."""

import pandas as pd
from matplotlib.figure import Figure

from sinkstudy.figures.style import COLOURS, DASHES, NULL_STYLE, length_axis, new_figure, styled


@styled
def length_figure(lengths: pd.DataFrame) -> Figure:
    """Sink percentage per threshold, and the mean score with the null curve, over every prefix length.

    `lengths` is one model's length table; every length averages the prompts that reach it.
    """
    figure, (left, right) = new_figure(6.8, 2.7, columns=2)
    mean = lengths.groupby(["threshold", "n_tokens"], as_index=False).mean(numeric_only=True)
    for i, (threshold, part) in enumerate(mean.groupby("threshold")):
        style = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}
        left.plot(part["n_tokens"], 100 * part["sink_fraction"], **style, label=f"score ≥ {threshold:g}")
        passes = part.loc[part["null_score"] >= threshold, "n_tokens"].max()
        left.plot([passes, passes], [0, 4], color=style["color"], linewidth=2.5, solid_capstyle="butt")
    left.set(ylabel="sink heads (% of all heads)", ylim=(0, 102))
    left.set_title("Sink percentage (mark: longest prompt at which\nuniform attention itself passes the threshold)")
    one = mean[mean["threshold"] == mean["threshold"].min()]
    right.plot(one["n_tokens"], one["mean_score"], color=COLOURS[0], label="mean score, all heads")
    right.plot(one["n_tokens"], one["null_score"], **NULL_STYLE, label="null: uniform attention")
    right.plot(one["n_tokens"], one["mean_excess"], color=COLOURS[1], linestyle="--", label="mean excess score")
    right.set(ylabel="score", ylim=(min(0, one["mean_excess"].min()) - 0.02, 1.02))
    right.set_title("Mean score beside its null")
    for ax in (left, right):
        ax.legend()
        length_axis(ax, lengths["n_tokens"].max())
        ax.grid(alpha=0.25, linewidth=0.5)
    prompts = lengths["prompt"].nunique()
    figure.suptitle(
        f"{lengths['model'].iloc[0]}, {prompts} prompts, every prefix length, averaged over the prompts that reach it",
        fontsize=9,
    )
    return figure
