"""How well each candidate tells later sinks on prompts it has not seen, and how many prompts a record needs."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinkstudy.figures.style import (
    COLOURS,
    COLUMN,
    MARKERS,
    NULL_STYLE,
    PAGE,
    length_axis,
    light_grid,
    new_figure,
    styled,
)
from sinkstudy.stats.recommendation import CANDIDATES, over_all_lengths, recommended

LABELS = {
    "layer_base_rate": "the base rate of its layer",
    "record": "a head's record on other prompts",
    "length_and_first_token": "length and first token",
    "first_layer": "same head, first layer",
    "activation": "first token's activation",
    "previous_layer": "same head, layer before",
    "anchor": "same head, best earlier layer",
    "all": "all together",
}
_SPREAD = 0.035  # of a length: candidates stand beside each other, so that their intervals can be told apart


@styled
def predictors_figure(predictors: pd.DataFrame, learning: pd.DataFrame) -> Figure:
    """Area under the ROC curve by length, a line per candidate; beside it that of a record by its prompts.

    `predictors`, `learning`: rows of one model and target in the tables of these names.
    """
    known = predictors.dropna(subset=["n_tokens", "auc"]) if len(predictors) else predictors
    if known.empty:
        figure, (ax,) = new_figure(COLUMN, 1.0)
        ax.axis("off")
        why = "too few prompts or layers" if predictors.empty else " and ".join(predictors["undefined"].unique())
        ax.text(0.5, 0.5, f"nothing to tell apart in later layers: {why}", ha="center", va="center")
        figure.suptitle(
            "what tells later sinks" if predictors.empty else f"{predictors['model'].iloc[0]}: what tells later sinks"
        )
        return figure
    figure, (left, right) = new_figure(PAGE, 3.1, columns=2, sharey=True, width_ratios=[3, 2])
    named = [name for name in CANDIDATES if name in set(known["predictor"])]
    for i, name in enumerate(named):
        rows = known[known["predictor"] == name].sort_values("n_tokens")
        shift = 1 + _SPREAD * (i - (len(named) - 1) / 2)
        look = {
            "color": COLOURS[(i - 1) % len(COLOURS)],
            "marker": MARKERS[(i - 1) % len(MARKERS)],
            "label": LABELS[name],
        }
        look |= {"linewidth": 1.8 if name == "record" else 1.0, "zorder": 3 if name == "record" else 2}
        if i == 0:
            look |= {"color": "0.55", "linestyle": "--", "marker": "_"}
        _points(left, rows["n_tokens"].astype(float) * shift, rows, look)
    length_axis(left, int(known["n_tokens"].max()))
    left.set_xticks(sorted(known["n_tokens"].unique()), [f"{n:.0f}" for n in sorted(known["n_tokens"].unique())])
    left.set_ylabel("sinks told from other heads (AUC)")
    for i, (n, rows) in enumerate(learning.sort_values("training_prompts").groupby("n_tokens")):
        look = {
            "color": str(0.75 - 0.75 * i / max(1, learning["n_tokens"].nunique() - 1)),
            "marker": MARKERS[i % len(MARKERS)],
            "label": f"{n} tokens",
        }
        _points(right, rows["training_prompts"] * (1 + _SPREAD * i), rows, look | {"linewidth": 1.0})
    right.set_xscale("log", base=2)
    sizes = [2**k for k in range(int(learning["training_prompts"].max()).bit_length())]
    right.set_xticks(sizes, [str(size) for size in sizes])
    right.set(xlabel="prompts in the record", title="how long a record must be")
    right.legend(loc="lower right")
    for ax in (left, right):
        light_grid(ax)
    left.axhline(0.5, label="chance", **NULL_STYLE)
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=3, columnspacing=1.2, handlelength=1.6
    )
    first = predictors.iloc[0]
    name = recommended(over_all_lengths(predictors))
    told = f"to tell later sinks, use {LABELS[name]}" if name else "nothing tells later sinks beyond their layer's rate"
    figure.suptitle(
        f"{first['model']}: {told}\n"
        f"sink score ≥ {first['threshold']:g}, on prompts not seen in fitting; bars: 95% over prompts"
    )
    return figure


def _points(ax: Axes, x: pd.Series, rows: pd.DataFrame, look: dict[str, object]) -> None:
    ax.plot(x, rows["auc"], markersize=3.5, **look)
    ax.vlines(x, rows["auc_low"], rows["auc_high"], color=look["color"], linewidth=0.8, zorder=1)
