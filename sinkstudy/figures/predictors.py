"""How well each candidate tells later sinks on prompts it has not seen, and how many prompts a record needs."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinkstudy.figures import messages, style
from sinkstudy.stats.recommendation import CANDIDATES

_SPREAD = 0.035  # of a length: candidates stand beside each other, so that their intervals can be told apart


@style.styled
def predictors_figure(predictors: pd.DataFrame, learning: pd.DataFrame) -> Figure:
    """Area under the ROC curve by length, a line per candidate; beside it that of a record by its prompts.

    `predictors`, `learning`: rows of one model and target in the tables of these names.
    """
    if predictors.empty:
        return style.nothing_figure("Nothing to tell apart in later layers: too few prompts or layers", "")
    known, model = predictors.dropna(subset=["n_tokens", "auc"]), predictors["model"].iloc[0]
    if known.empty:
        why = " and ".join(predictors["undefined"].unique())
        return style.nothing_figure(f"Nothing to tell apart in later layers: {why}", model)
    figure, (left, right) = style.new_figure(style.PAGE, 3.1, columns=2, sharey=True, width_ratios=[3, 2])
    named = [name for name in CANDIDATES if name in set(known["predictor"])]
    for i, name in enumerate(named):
        rows = known[known["predictor"] == name].sort_values("n_tokens")
        shift = 1 + _SPREAD * (i - (len(named) - 1) / 2)
        look = style.points_style(i - 1) | {"linestyle": "-", "label": messages.PREDICTORS[name]}
        look |= {"linewidth": 1.8, "zorder": 3} if name == "record" else {"linewidth": 1.0, "zorder": 2}
        if i == 0:
            look |= {"color": "0.55", "linestyle": "--", "marker": "_"}
        _points(left, rows["n_tokens"].astype(float) * shift, rows, look)
    lengths = sorted(known["n_tokens"].unique())
    style.length_axis(left, lengths[-1])
    left.set_xticks(lengths, [f"{n:.0f}" for n in lengths])
    left.set_ylabel("AUC for later sinks")
    for i, (n, rows) in enumerate(learning.sort_values("training_prompts").groupby("n_tokens")):
        grey = str(0.75 - 0.75 * i / max(1, learning["n_tokens"].nunique() - 1))
        look = style.points_style(i) | {"color": grey, "linestyle": "-", "linewidth": 1.0, "label": f"{n} tokens"}
        _points(right, rows["training_prompts"] * (1 + _SPREAD * i), rows, look)
    right.set_xscale("log", base=2)
    sizes = [2**k for k in range(int(learning["training_prompts"].max()).bit_length())]
    right.set_xticks(sizes, sizes)
    right.set(xlabel="prompts in the record", title="how long a record must be")
    right.legend(loc="lower right")
    style.light_grid(right)
    left.axhline(0.5, label="chance", **style.NULL_STYLE)
    handles = left.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, columnspacing=1.2, handlelength=1.6)
    prompts = f"n = {predictors['prompts'].max():.0f} prompts, none judged by a fit that has seen it"
    details = f"{model}, sink score ≥ {predictors['threshold'].iloc[0]:g}; {prompts}; bars: 95% over prompts"
    return style.headline(figure, messages.predictors(predictors), details)


def _points(ax: Axes, x: pd.Series, rows: pd.DataFrame, look: dict[str, object]) -> None:
    ax.plot(x, rows["auc"], markersize=3.5, **look)
    ax.vlines(x, rows["auc_low"], rows["auc_high"], color=look["color"], linewidth=0.8, zorder=1)
