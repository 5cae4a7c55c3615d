"""Layer-by-head pictures: score heatmaps, the threshold contour, and bars per layer."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sinkstudy.figures.style import COLOURS, SCORE_MAP, THRESHOLD_STYLE, new_figure, styled

_MAX_WRITTEN_CELLS = 160


@styled
def score_heatmap(heads: pd.DataFrame) -> Figure:
    """Mean sink score and mean excess score side by side; `heads` holds one model and set of the head table."""
    figure, axes = new_figure(*_size(heads, panels=2), columns=2)
    first = heads.iloc[0]
    panels = (("mean_sink_score", "sink score"), ("mean_excess_score", "excess score"))
    for ax, (column, label) in zip(axes, panels, strict=True):
        image = _matrix(ax, _pivot(heads, column))
        figure.colorbar(image, ax=ax, shrink=0.85, label=f"mean {label}")
        ax.set_title(label)
    figure.suptitle(f"{first['model']}, set “{first['set']}”: {_prompts(first)}")
    return figure


@styled
def contour_heatmap(heads: pd.DataFrame, threshold: float) -> Figure:
    """Mean sink score with the border of the region at or above `threshold` drawn in."""
    figure, (ax,) = new_figure(*_size(heads, panels=1))
    score = _pivot(heads, "mean_sink_score")
    image = _matrix(ax, score)
    outline(ax, score.to_numpy() >= threshold)
    figure.colorbar(image, ax=ax, shrink=0.85, label="mean sink score")
    inside = int((score.to_numpy() >= threshold).sum())
    ax.set_title(f"{inside} of {score.size} heads at {threshold:g} or more (outlined)", fontsize=7.5)
    figure.suptitle(f"{heads.iloc[0]['model']}, {_prompts(heads.iloc[0])}", fontsize=8)
    return figure


@styled
def layer_bars(heads: pd.DataFrame, threshold: float) -> Figure:
    """Mean score per layer with every head as a dot, the null score as a dashed line, and the threshold line."""
    figure, (ax,) = new_figure(3.5, 2.6)
    layers = sorted(heads["layer"].unique())
    means = heads.groupby("layer")["mean_sink_score"].mean()
    ax.bar(range(len(layers)), means[layers], color=COLOURS[4], width=0.7, label="mean over heads")
    for place, layer in enumerate(layers):
        scores = heads.loc[heads["layer"] == layer, "mean_sink_score"]
        spread = np.linspace(-0.25, 0.25, len(scores)) if len(scores) > 1 else [0.0]
        label = "one head" if place == 0 else None
        ax.plot(place + np.asarray(spread), scores, ".", color="black", markersize=3, label=label)
    null = heads["mean_null_score"].iloc[0]
    ax.axhline(null, color="0.35", linestyle=(0, (2, 2)), label=f"uniform attention ({null:.2f})")
    ax.axhline(threshold, **THRESHOLD_STYLE, label=f"threshold {threshold:g}")
    ax.set(
        ylim=(0, 1.02),
        xlabel="layer",
        ylabel="sink score",
        title=f"{heads.iloc[0]['model']}, {_prompts(heads.iloc[0])}",
    )
    _layer_ticks(ax.set_xticks, layers)
    figure.legend(loc="outside lower center", ncols=2)
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
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(True)
    if values.size <= _MAX_WRITTEN_CELLS:
        for row, column in np.ndindex(values.shape):
            value = values.iat[row, column]
            if np.isfinite(value):
                colour = "white" if value < 0.5 else "black"
                ax.text(column, row, f"{round(value, 2) + 0:.2f}", ha="center", va="center", fontsize=5.5, color=colour)
    return image


def _pivot(heads: pd.DataFrame, column: str) -> pd.DataFrame:
    return heads.pivot(index="layer", columns="head", values=column)


def _layer_ticks(set_ticks, layers: list[int]) -> None:
    step = max(1, len(layers) // 8)
    set_ticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])


def _prompts(row: pd.Series) -> str:
    count = int(row["prompts"])
    tokens = f"{row['mean_tokens']:.0f} tokens"
    return f"1 prompt of {tokens}" if count == 1 else f"{count} prompts of {tokens} on average"


def _size(heads: pd.DataFrame, panels: int) -> tuple[float, float]:
    columns, rows = heads["head"].nunique(), heads["layer"].nunique()
    return panels * min(5.0, 1.6 + 0.28 * columns), min(6.5, 1.5 + 0.3 * rows)
