"""Layer-by-head pictures: score heatmaps, the threshold contour, and bars per layer."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sinkstudy.figures import messages
from sinkstudy.figures.style import (
    COLOURS,
    COLUMN,
    NULL_STYLE,
    PAGE,
    SCORE_MAP,
    THRESHOLD_STYLE,
    headline,
    new_figure,
    styled,
)

_ONE_HEAD = {"markerfacecolor": "white", "markeredgecolor": "black", "markeredgewidth": 0.6}
_MAX_WRITTEN_HEADS = 8  # per panel; with more heads the numbers in the cells would be too small to read


@styled
def score_heatmap(heads: pd.DataFrame) -> Figure:
    """Mean sink score and mean excess score side by side; `heads` holds one model and set of the head table."""
    figure, axes = new_figure(PAGE, _height(heads), columns=2, sharey=True)
    for ax, column in zip(axes, ("mean_sink_score", "mean_excess_score"), strict=True):
        image = _matrix(ax, _pivot(heads, column))
    axes[0].set_title("sink score")
    axes[1].set_title("excess over uniform attention")
    axes[1].set_ylabel(None)
    below = (heads["mean_excess_score"] < 0).any()
    figure.colorbar(image, ax=axes, label="mean over prompts", extend="min" if below else "neither", pad=0.02)
    headline(figure, messages.excess_by_head(heads), _details(heads))
    return figure


@styled
def contour_heatmap(heads: pd.DataFrame, threshold: float) -> Figure:
    """Mean sink score with the border of the region at or above `threshold` drawn in."""
    figure, (ax,) = new_figure(COLUMN, _height(heads) + 0.15)
    score = _pivot(heads, "mean_sink_score")
    image = _matrix(ax, score)
    outline(ax, score.to_numpy() >= threshold)
    figure.colorbar(image, ax=ax, label="mean sink score", pad=0.02)
    details = f"{_details(heads)}; outlined: mean sink score ≥ {threshold:g}"
    headline(figure, messages.score_by_head(heads, threshold), details)
    return figure


@styled
def layer_bars(heads: pd.DataFrame, layers: pd.DataFrame, threshold: float) -> Figure:
    """Mean score per layer with its interval, every head as a dot, the null and the threshold as lines.

    `heads`: one model's rows of the head table over all prompts; `layers`: its layer table.
    """
    figure, (ax,) = new_figure(COLUMN, 2.7)
    layers = layers.sort_values("layer")
    places, few = np.arange(len(layers)), len(heads) <= 200
    mean = layers["mean_sink_score"].to_numpy()
    ax.bar(places, mean, color=COLOURS[4], width=0.7, label="mean over heads", zorder=1)
    for place, layer in zip(places, layers["layer"], strict=True):
        scores = heads.loc[heads["layer"] == layer, "mean_sink_score"]
        spread = np.linspace(-0.27, 0.27, len(scores)) if len(scores) > 1 else np.zeros(1)
        label = "one head" if place == 0 else None
        ax.plot(
            place + spread,
            scores,
            "o",
            **_ONE_HEAD,
            markersize=3 if few else 1.5,
            alpha=1 if few else 0.5,
            label=label,
            zorder=2,
        )
    known = layers["score_low"].notna().to_numpy()
    if known.any():
        ends = np.stack([mean - layers["score_low"], layers["score_high"] - mean])[:, known]
        marks = {
            "fmt": "none",
            "ecolor": "black",
            "elinewidth": 1.8 if few else 1,
            "capsize": 3.5 if few else 1.5,
            "zorder": 4,
        }
        ax.errorbar(places[known], mean[known], np.maximum(ends, 0), label="95% over prompts", **marks)
    null = layers["mean_null_score"].iloc[0]
    ax.axhline(null, **NULL_STYLE, label=f"null: uniform attention ({null:.2f})")
    ax.axhline(threshold, **THRESHOLD_STYLE, label=f"threshold ({threshold:g})")
    ax.set(ylim=(0, 1.04), xlabel="layer", ylabel="sink score")
    _layer_ticks(ax.set_xticks, layers["layer"].tolist())
    figure.legend(loc="outside lower center", ncols=2)
    headline(figure, messages.score_by_layer(layers, threshold), _details(heads))
    return figure


def outline(ax: Axes, inside: np.ndarray) -> None:
    """Draw the borders of the True cells of a (layer, head) matrix shown with `imshow`."""
    padded = np.pad(inside, 1)
    for layer, head in np.argwhere(inside):
        for (dl, dh), (x, y) in {
            (-1, 0): ((head - 0.5, head + 0.5), (layer - 0.5, layer - 0.5)),
            (1, 0): ((head - 0.5, head + 0.5), (layer + 0.5, layer + 0.5)),
            (0, -1): ((head - 0.5, head - 0.5), (layer - 0.5, layer + 0.5)),
            (0, 1): ((head + 0.5, head + 0.5), (layer - 0.5, layer + 0.5)),
        }.items():
            if not padded[layer + 1 + dl, head + 1 + dh]:
                ax.plot(x, y, color=THRESHOLD_STYLE["color"], linewidth=1.8, solid_capstyle="projecting")


def _matrix(ax: Axes, values: pd.DataFrame):
    image = ax.imshow(values, cmap=SCORE_MAP, vmin=0, vmax=1, aspect="auto", origin="upper")
    ax.set(xlabel="head", ylabel="layer")
    _layer_ticks(ax.set_yticks, list(values.index))
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.spines[["top", "right"]].set_visible(True)
    if values.shape[1] <= _MAX_WRITTEN_HEADS and values.shape[0] <= 2 * _MAX_WRITTEN_HEADS:
        for row, column in np.ndindex(values.shape):
            value = values.iat[row, column]
            if np.isfinite(value):
                colour = "white" if value < 0.5 else "black"
                text = f"{round(value, 2) + 0:.2f}".replace("0.", ".", 1)
                ax.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour)
    return image


def _pivot(heads: pd.DataFrame, column: str) -> pd.DataFrame:
    return heads.pivot(index="layer", columns="head", values=column)


def _layer_ticks(set_ticks, layers: list[int]) -> None:
    step = max(1, len(layers) // 8)
    set_ticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])


def _details(heads: pd.DataFrame) -> str:
    first = heads.iloc[0]
    some = f"n = {first['prompts']:.0f} prompts" if first["prompts"] > 1 else "n = 1 prompt"
    average = " on average" if first["prompts"] > 1 else ""
    return f"{first['model']}, prompt set {first['set']}: {some} of {first['mean_tokens']:.0f} tokens{average}"


def _height(heads: pd.DataFrame) -> float:
    return min(4.5, 1.25 + 0.24 * heads["layer"].nunique())
