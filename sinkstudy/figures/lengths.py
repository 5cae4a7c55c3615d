"""Scores and sink percentage against prompt length."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinkstudy.figures import messages, style


@style.styled
def length_figure(curves: pd.DataFrame, threshold: float) -> Figure:
    """Sink percentage per threshold, and the mean score with the null curve, over every prefix length.

    `curves`: one model's rows of the table of curves over all sets. `threshold`: the one of which the title speaks.
    """
    figure, (left, right) = style.new_figure(style.PAGE, 3.3, columns=2)
    for i, (bound, part) in enumerate(curves.groupby("threshold")):
        style.length_curve(left, i, part, "sink_fraction", 100, label=f"score ≥ {bound:g}")
        passes = part.loc[part["null_score"] >= bound, "n_tokens"].max()
        left.plot(passes, 0, "v", color=style.series_style(i)["color"], markersize=5, clip_on=False, zorder=5)
    left.set(ylabel="sink heads (% of all heads)", ylim=(0, 103))
    left.set_title("sinks (▾ uniform attention\npasses up to here)")
    one = curves[curves["threshold"] == curves["threshold"].min()]
    right.plot(one["n_tokens"], one["mean_score"], **style.series_style(0), label="mean score, all heads")
    right.plot(one["n_tokens"], one["null_score"], **style.NULL_STYLE, label="null: uniform attention")
    style.length_curve(right, 1, one, "mean_excess", label="mean excess score")
    lowest = np.nanmin([0, one["mean_excess"].min(), one["mean_excess_low"].min()])
    right.set(ylabel="score", ylim=(lowest - 0.02, 1.03))
    right.set_title("mean score beside\nthat of uniform attention")
    for ax in (left, right):
        _counted_lengths(ax, one["n_tokens"].to_numpy(), one["prompts"].to_numpy(), most=6)
    figure.legend(loc="outside lower center", ncols=3)  # The curves of some models leave no free corner.
    prompts = f"n = {one['prompts'].max()} prompts cut to each length; bands: 95% over prompts"
    return style.headline(figure, messages.over_lengths(curves, threshold), f"{curves['model'].iloc[0]}, {prompts}")


@style.styled
def head_curves_figure(
    model: str, lengths: np.ndarray, scores: np.ndarray, prompts: np.ndarray, null: np.ndarray, threshold: float
) -> Figure:
    """Every head's mean score as a thin line, beside the null, the mean over heads and the threshold.

    `scores` (layer, head, length), `prompts` (length,) that reach each of `lengths`, `null` (length,).
    """
    figure, (ax,) = style.new_figure(style.COLUMN, 2.9)
    heads = scores.reshape(-1, len(lengths))
    alpha = min(0.6, max(0.08, 40 / len(heads)))  # many opaque lines would hide each other
    labels = [f"one of {len(heads)} heads"] + [None] * (len(heads) - 1)
    ax.plot(lengths, heads.T, color="0.45", linewidth=0.5, alpha=alpha, label=labels)
    ax.plot(lengths, heads.mean(0), **style.series_style(0), label="mean over heads")
    ax.plot(lengths, null, **style.NULL_STYLE, label="null: uniform attention")
    ax.axhline(threshold, **style.THRESHOLD_STYLE, label=f"threshold ({threshold:g})")
    ax.set(ylabel="mean sink score", ylim=(-0.02, 1.04))
    _counted_lengths(ax, lengths, prompts, most=10)
    figure.legend(loc="outside lower center", ncols=2)
    message = messages.by_head_over_lengths(lengths, scores, prompts, null, threshold)
    details = f"{model}, n = {prompts.max()} prompts cut to each length; sink score ≥ {threshold:g}"
    return style.headline(figure, message, details)


def _counted_lengths(ax: Axes, lengths: np.ndarray, prompts: np.ndarray, most: int) -> None:
    """The axis of lengths with `most` ticks at most, and below each the number of prompts that reach it."""
    style.length_axis(ax, lengths.max())
    ticks = ax.get_xticks().astype(int)
    ticks = ticks[:: -(-len(ticks) // most)]
    ax.set_xticks(ticks, [f"{tick}\n{prompts[np.searchsorted(lengths, tick)]}" for tick in ticks])
    ax.set_xlabel("prompt length (tokens)\nbelow: n, prompts that reach it")
