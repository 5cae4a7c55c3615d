"""Layer by layer: the share of one layer's sinks that another layer has at the same head indices."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinkstudy.figures import messages, style

_CHANGE_MAP = "PuOr_r"  # two hues that are distinct with any colour vision; darker is further from the base rate
_MAX_WRITTEN_LAYERS = 12


@style.styled
def layer_pair_figure(pairs: pd.DataFrame) -> Figure:
    """P(sink in b | sink in a) for every pair of layers, and that less P(sink in b).

    `pairs` holds one model and threshold of the table of layer pairs, of whole prompts. Pairs whose layer a has no
    sinks are undefined and crossed out; a layer and itself are left blank.
    """
    if pairs.empty:
        return style.nothing_figure("A single layer attends, so there is no other to compare it with", "")
    figure, (left, right) = style.new_figure(style.PAGE, style.PAGE / 2, columns=2)
    image = _square(left, pairs, pairs["p_b_given_a"], style.SCORE_MAP, 0)
    figure.colorbar(image, ax=left, shrink=0.7, label="P(sink in b | sink in a)")
    image = _square(right, pairs, pairs["p_b_given_a"] - pairs["p_b"], _CHANGE_MAP, -1)
    figure.colorbar(image, ax=right, shrink=0.7, label="… less P(sink in b)")
    left.set_title("share followed")
    right.set_title("beyond the base rate")
    first = pairs.iloc[0]
    undefined = " (×: no sinks in layer a)" if pairs["p_b_given_a"].isna().any() else ""
    what = f"n = {first['prompts']} prompts, whole prompts, sink score ≥ {first['threshold']:g}"
    return style.headline(figure, messages.layer_pairs(pairs), f"{first['model']}, {what}{undefined}")


def _square(ax: Axes, pairs: pd.DataFrame, shown: pd.Series, colours: str, lowest: int):
    """A row per layer a, a column per layer b, coloured by `shown`, which reaches from `lowest` to 1."""
    layers = sorted(set(pairs["layer_a"]) | set(pairs["layer_b"]))
    values = pairs.assign(shown=shown).pivot(index="layer_a", columns="layer_b", values="shown")
    values = values.reindex(layers, columns=layers).to_numpy()
    image = ax.imshow(values, cmap=colours, vmin=lowest, vmax=1, origin="upper")
    ax.set(xlabel="layer b", ylabel="layer a")
    step = -(-len(layers) // 6)  # more labels would touch
    ax.set_xticks(range(0, len(layers), step), layers[::step])
    ax.set_yticks(range(0, len(layers), step), layers[::step])
    ax.spines[["top", "right"]].set_visible(True)
    for (row, column), value in np.ndenumerate(values):
        if row == column:
            continue
        if np.isnan(value):
            ax.text(column, row, "×", ha="center", va="center", color="0.4", fontsize=6)
        elif len(layers) <= _MAX_WRITTEN_LAYERS:
            # Cividis is dark at its low end, the diverging map at both.
            dark = value < 0.5 if lowest == 0 else abs(value) > 0.6
            text = f"{round(value, 2) + 0:.2f}"
            ax.text(column, row, text, ha="center", va="center", fontsize=5.5, color="white" if dark else "black")
    return image
