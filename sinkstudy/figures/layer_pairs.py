"""Layer by layer: the share of one layer's sinks that another layer has at the same head indices."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinkstudy.figures import messages
from sinkstudy.figures.style import PAGE, SCORE_MAP, headline, new_figure, nothing_figure, styled

_CHANGE_MAP = "PuOr_r"  # two hues that are distinct with any colour vision; darker is further from the base rate
_MAX_WRITTEN_LAYERS = 12


@styled
def layer_pair_figure(pairs: pd.DataFrame) -> Figure:
    """P(sink in b | sink in a) for every pair of layers, and that less P(sink in b).

    `pairs` holds one model, threshold and length of the table of layer pairs. Pairs whose layer a has no sinks are
    undefined and crossed out; a layer and itself are left blank.
    """
    if pairs.empty:
        return nothing_figure("A single layer attends, so there is no other to compare it with", "")
    layers = sorted(set(pairs["layer_a"]) | set(pairs["layer_b"]))
    figure, (left, right) = new_figure(PAGE, PAGE / 2, columns=2)
    square = pairs.pivot(index="layer_a", columns="layer_b", values="p_b_given_a").reindex(layers, columns=layers)
    beyond = pairs.assign(beyond=pairs["p_b_given_a"] - pairs["p_b"])
    beyond = beyond.pivot(index="layer_a", columns="layer_b", values="beyond").reindex(layers, columns=layers)
    image = _square(left, square, layers, SCORE_MAP, (0, 1))
    figure.colorbar(image, ax=left, shrink=0.7, label="P(sink in b | sink in a)")
    image = _square(right, beyond, layers, _CHANGE_MAP, (-1, 1))
    figure.colorbar(image, ax=right, shrink=0.7, label="… less P(sink in b)")
    left.set_title("share followed")
    right.set_title("beyond the base rate")
    first = pairs.iloc[0]
    length = "whole prompts" if pd.isna(first["n_tokens"]) else f"{int(first['n_tokens'])} tokens"
    undefined = " (×: no sinks in layer a)" if pairs["p_b_given_a"].isna().any() else ""
    what = f"n = {int(first['prompts'])} prompts, {length}, sink score ≥ {first['threshold']:g}"
    headline(figure, messages.layer_pairs(pairs), f"{first['model']}, {what}{undefined}")
    return figure


def _square(ax: Axes, values: pd.DataFrame, layers: list[int], colours: str, ends: tuple[float, float]):
    image = ax.imshow(values, cmap=colours, vmin=ends[0], vmax=ends[1], origin="upper")
    ax.set(xlabel="layer b", ylabel="layer a")
    step = -(-len(layers) // 6)  # more labels would touch
    ax.set_xticks(range(0, len(layers), step), layers[::step])
    ax.set_yticks(range(0, len(layers), step), layers[::step])
    ax.spines[["top", "right"]].set_visible(True)
    middle = sum(ends) / 2
    for row, column in np.ndindex(values.shape):
        value = values.iat[row, column]
        if row == column:
            continue
        if np.isnan(value):
            ax.text(column, row, "×", ha="center", va="center", color="0.4", fontsize=6)
        elif len(layers) <= _MAX_WRITTEN_LAYERS:
            # Cividis is dark at its low end, the diverging map at both.
            dark = value < 0.5 if ends[0] == 0 else abs(value - middle) > 0.6
            text = f"{round(value, 2) + 0:.2f}"
            ax.text(column, row, text, ha="center", va="center", fontsize=5.5, color="white" if dark else "black")
    return image
