"""Layer-by-head pictures: score heatmaps, the threshold contour, and bars per layer."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sinkstudy.figures import messages, style

_ONE_HEAD = {"markerfacecolor": "white", "markeredgecolor": "black", "markeredgewidth": 0.6, "zorder": 2}
_MAX_WRITTEN_HEADS = 8  # per panel; with more heads the numbers in the cells would be too small to read


@style.styled
def score_heatmap(heads: pd.DataFrame) -> Figure:
    """Mean sink score and mean excess score side by side; `heads` holds one model and set of the head table."""
    figure, (left, right) = style.new_figure(style.PAGE, _height(heads), columns=2, sharey=True)
    _matrix(left, heads, "mean_sink_score")
    image = _matrix(right, heads, "mean_excess_score")
    left.set_title("sink score")
    right.set(title="excess over uniform attention", ylabel=None)
    below = (heads["mean_excess_score"] < 0).any()
    extend = "min" if below else "neither"
    figure.colorbar(image, ax=[left, right], label="mean over prompts", extend=extend, pad=0.02)
    return style.headline(figure, messages.excess_by_head(heads), _details(heads))


@style.styled
def contour_heatmap(heads: pd.DataFrame, threshold: float) -> Figure:
    """Mean sink score with the border of the region at or above `threshold` drawn in."""
    figure, (ax,) = style.new_figure(style.COLUMN, _height(heads) + 0.15)
    image = _matrix(ax, heads, "mean_sink_score")
    outline(ax, image.get_array() >= threshold)
    figure.colorbar(image, ax=ax, label="mean sink score", pad=0.02)
    details = f"{_details(heads)}; outlined: mean sink score ≥ {threshold:g}"
    return style.headline(figure, messages.score_by_head(heads, threshold), details)


@style.styled
def layer_bars(heads: pd.DataFrame, layers: pd.DataFrame, threshold: float) -> Figure:
    """Mean score per layer with its interval, every head as a dot, the null and the threshold as lines.

    `heads`: one model's rows of the head table over all prompts; `layers`: its layer table.
    """
    figure, (ax,) = style.new_figure(style.COLUMN, 2.7)
    layers, few = layers.sort_values("layer").reset_index(drop=True), len(heads) <= 200
    places, mean = layers.index.to_numpy(), layers["mean_sink_score"]
    ax.bar(places, mean, color=style.COLOURS[4], width=0.7, label="mean over heads", zorder=1)
    scores = heads.pivot(index="layer", columns="head", values="mean_sink_score").to_numpy()
    spread = np.linspace(-0.27, 0.27, scores.shape[1]) if scores.shape[1] > 1 else np.zeros(1)
    dots = _ONE_HEAD | ({"markersize": 3} if few else {"markersize": 1.5, "alpha": 0.5})
    ax.plot((places[:, None] + spread).ravel(), scores.ravel(), "o", label="one head", **dots)
    known = layers["score_low"].notna()
    if known.any():
        ends = np.maximum([mean - layers["score_low"], layers["score_high"] - mean], 0)[:, known]
        marks = {"elinewidth": 1.8, "capsize": 3.5} if few else {"elinewidth": 1, "capsize": 1.5}
        marks |= {"fmt": "none", "ecolor": "black", "zorder": 4, "label": "95% over prompts"}
        ax.errorbar(places[known], mean[known], ends, **marks)
    null = layers["mean_null_score"].iloc[0]
    ax.axhline(null, **style.NULL_STYLE, label=f"null: uniform attention ({null:.2f})")
    ax.axhline(threshold, **style.THRESHOLD_STYLE, label=f"threshold ({threshold:g})")
    ax.set(ylim=(0, 1.04), xlabel="layer", ylabel="sink score")
    style.layer_ticks(ax.set_xticks, layers["layer"])
    figure.legend(loc="outside lower center", ncols=2)
    return style.headline(figure, messages.score_by_layer(layers, threshold), _details(heads))


def outline(ax: Axes, inside: np.ndarray) -> None:
    """Draw the borders of the True cells of a (layer, head) matrix shown with `imshow`."""
    padded = np.pad(inside, 1)
    border = {"color": style.THRESHOLD_STYLE["color"], "linewidth": 1.8, "solid_capstyle": "projecting"}
    # Two cells of which one is inside have a border between them.
    for layer, head in np.argwhere(np.diff(padded, axis=0)[:, 1:-1]):
        ax.plot([head - 0.5, head + 0.5], [layer - 0.5, layer - 0.5], **border)
    for layer, head in np.argwhere(np.diff(padded, axis=1)[1:-1]):
        ax.plot([head - 0.5, head - 0.5], [layer - 0.5, layer + 0.5], **border)


def _matrix(ax: Axes, heads: pd.DataFrame, column: str):
    """A row per layer, a cell per head, coloured by `column`; with its numbers where there is room for them."""
    values = heads.pivot(index="layer", columns="head", values=column)
    image = ax.imshow(values, cmap=style.SCORE_MAP, vmin=0, vmax=1, aspect="auto", origin="upper")
    ax.set(xlabel="head", ylabel="layer")
    style.layer_ticks(ax.set_yticks, values.index)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.spines[["top", "right"]].set_visible(True)
    if values.shape[1] <= _MAX_WRITTEN_HEADS and values.shape[0] <= 2 * _MAX_WRITTEN_HEADS:
        for (row, head), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "white" if value < 0.5 else "black"
                text = f"{round(value, 2) + 0:.2f}".replace("0.", ".", 1)
                ax.text(head, row, text, ha="center", va="center", fontsize=6.5, color=colour)
    return image


def _details(heads: pd.DataFrame) -> str:
    first = heads.iloc[0]
    some = f"n = {first['prompts']:.0f} prompts" if first["prompts"] > 1 else "n = 1 prompt"
    average = " on average" if first["prompts"] > 1 else ""
    return f"{first['model']}, prompt set {first['set']}: {some} of {first['mean_tokens']:.0f} tokens{average}"


def _height(heads: pd.DataFrame) -> float:
    return min(4.5, 1.25 + 0.24 * heads["layer"].nunique())
