"""How well each candidate tells later sinks on prompts it has not seen, and how many prompts a record needs."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinkstudy.figures import messages
from sinkstudy.figures.style import (
    COLOURS,
    MARKERS,
    NULL_STYLE,
    PAGE,
    headline,
    length_axis,
    light_grid,
    new_figure,
    nothing_figure,
    styled,
)
from sinkstudy.stats.recommendation import CANDIDATES

_SPREAD = 0.035  # of a length: candidates stand beside each other, so that their intervals can be told apart


@styled
def predictors_figure(predictors: pd.DataFrame, learning: pd.DataFrame) -> Figure:
    """Area under the ROC curve by length, a line per candidate; beside it that of a record by its prompts.

    `predictors`, `learning`: rows of one model and target in the tables of these names.
    """
    known = predictors.dropna(subset=["n_tokens", "auc"]) if len(predictors) else predictors
    if known.empty:
        why = "too few prompts or layers" if predictors.empty else " and ".join(predictors["undefined"].unique())
        model = "" if predictors.empty else predictors["model"].iloc[0]
        return nothing_figure(f"Nothing to tell apart in later layers: {why}", model)
    figure, (left, right) = new_figure(PAGE, 3.1, columns=2, sharey=True, width_ratios=[3, 2])
    named = [name for name in CANDIDATES if name in set(known["predictor"])]
    for i, name in enumerate(named):
        rows = known[known["predictor"] == name].sort_values("n_tokens")
        shift = 1 + _SPREAD * (i - (len(named) - 1) / 2)
        look = {
            "color": COLOURS[(i - 1) % len(COLOURS)],
            "marker": MARKERS[(i - 1) % len(MARKERS)],
            "label": messages.PREDICTORS[name],
        }
        look |= {"linewidth": 1.8 if name == "record" else 1.0, "zorder": 3 if name == "record" else 2}
        if i == 0:
            look |= {"color": "0.55", "linestyle": "--", "marker": "_"}
        _points(left, rows["n_tokens"].astype(float) * shift, rows, look)
    length_axis(left, int(known["n_tokens"].max()))
    left.set_xticks(sorted(known["n_tokens"].unique()), [f"{n:.0f}" for n in sorted(known["n_tokens"].unique())])
    left.set_ylabel("AUC for later sinks")
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
    prompts = f"n = {predictors['prompts'].max():.0f} prompts, none judged by a fit that has seen it"
    details = f"{first['model']}, sink score ≥ {first['threshold']:g}; {prompts}; bars: 95% over prompts"
    headline(figure, messages.predictors(predictors), details)
    return figure


def _points(ax: Axes, x: pd.Series, rows: pd.DataFrame, look: dict[str, object]) -> None:
    ax.plot(x, rows["auc"], markersize=3.5, **look)
    ax.vlines(x, rows["auc_low"], rows["auc_high"], color=look["color"], linewidth=0.8, zorder=1)
