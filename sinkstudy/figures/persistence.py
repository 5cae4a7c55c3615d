"""In which share of prompts each head is a sink, over all prompts and per prompt set."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sinkstudy.figures import messages
from sinkstudy.figures.style import (
    COLOURS,
    MARKERS,
    PAGE,
    SCORE_MAP,
    band,
    headline,
    light_grid,
    new_figure,
    nothing_figure,
    series_style,
    styled,
)

_SHOWN_HEADS = 24


@styled
def persistence_figure(persistence: pd.DataFrame) -> Figure:
    """The share per layer and head at the longest tabulated length, and the sorted shares of all heads at every length.

    `persistence` holds one model and threshold of the table of persistence, set `all`.
    """
    if persistence.empty:
        return nothing_figure("No prompt is long enough to compare heads", "")
    lengths = sorted(persistence["n_tokens"].unique())
    longest = persistence[persistence["n_tokens"] == lengths[-1]]
    matrix = longest.pivot(index="layer", columns="head", values="sink_share")
    figure, (left, right) = new_figure(PAGE, max(2.5, min(4.5, 1.7 + 0.14 * len(matrix))), columns=2)
    image = left.imshow(100 * matrix, cmap=SCORE_MAP, vmin=0, vmax=100, aspect="auto")
    figure.colorbar(image, ax=left, label=f"% of n = {int(longest['prompts'].iloc[0])} prompts")
    left.set(xlabel="head", ylabel="layer", title=f"sink at {int(lengths[-1])} tokens")
    step = max(1, len(matrix) // 8)
    left.set_yticks(range(0, len(matrix), step), matrix.index[::step])
    left.spines[["top", "right"]].set_visible(True)
    for i, n in enumerate(lengths):
        part = persistence[persistence["n_tokens"] == n].sort_values("sink_share", ascending=False)
        place = np.arange(1, len(part) + 1)
        label = f"{int(n)} tokens, n = {int(part['prompts'].iloc[0])}"
        look = series_style(i)
        right.plot(place, 100 * part["sink_share"], **look, label=label)
        band(right, place, 100 * part["share_low"], 100 * part["share_high"], look["color"])
    right.set(xlabel="heads, most persistent first", ylabel="sink in % of prompts", ylim=(-2, 102))
    right.set_title("every head, with 95% interval")
    figure.legend(loc="outside lower center", ncols=3)
    prompts = f"n = {longest['prompts'].iloc[0]} prompts cut to {int(lengths[-1])} tokens"
    details = f"{persistence['model'].iloc[0]}, {prompts}, {_score(persistence)}"
    headline(figure, messages.persistence(longest["sink_share"], int(lengths[-1])), details)
    return figure


@styled
def set_dependence_figure(persistence: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Sink percentage per prompt set with its interval, and the shares of heads that are sinks in some prompts only.

    `persistence` and `curves` hold one model and threshold of their tables, all sets, at any lengths; the longest
    tabulated length is shown, with at most as many heads as fit, those whose shares differ most between sets.
    """
    if persistence.empty:
        return nothing_figure("No prompt is long enough to compare sets", "")
    n = persistence["n_tokens"].max()
    persistence = persistence[persistence["n_tokens"] == n]
    sets = [name for name in persistence["set"].unique() if name != "all"]
    counts = persistence.groupby("set")["prompts"].first()
    figure, (left, right) = new_figure(PAGE, max(2.8, 1.4 + 0.2 * len(sets)), columns=2)
    rows = curves[curves["n_tokens"] == n].set_index("set").reindex(sets)
    for place, row in enumerate(rows.to_dict("records")):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        left.plot(100 * row["sink_fraction"], place, marker=marker, color=colour, linestyle="none", zorder=3)
        if pd.notna(row["sink_fraction_low"]):
            ends = [100 * row["sink_fraction_low"], 100 * row["sink_fraction_high"]]
            left.plot(ends, [place, place], color=colour)
    left.set_yticks(range(len(sets)), [f"{name} (n = {counts[name]})" for name in sets])
    left.invert_yaxis()
    most = np.nanmax([1, *100 * rows[["sink_fraction", "sink_fraction_high"]].to_numpy(float).ravel()])
    left.set(xlabel="sink heads (% of all heads)", xlim=(-0.02 * most, min(102, 1.1 * most)))
    left.set_title("sinks per set,\n95% interval over prompts")
    light_grid(left)
    shares = persistence[persistence["set"] != "all"].pivot(index="set", columns=["layer", "head"], values="sink_share")
    shares = shares.reindex(sets).loc[:, lambda part: (part.max() > 0) & (part.min() < 1)]
    spread = (shares.max() - shares.min()).sort_values(ascending=False, kind="stable")
    shown = sorted(spread.index[:_SHOWN_HEADS])
    if shown:
        image = right.imshow(100 * shares[shown], cmap=SCORE_MAP, vmin=0, vmax=100, aspect="auto")
        figure.colorbar(image, ax=right, label="sink in % of the set's prompts")
        right.set_xticks(range(len(shown)), [f"{layer}.{head}" for layer, head in shown], rotation=90, fontsize=5)
        right.set_yticks(range(len(sets)), [])
        right.set_xlabel("layer.head")
        right.set_title(f"{len(shown)} of {shares.shape[1]} heads that are\nsinks in some prompts only")
    else:
        right.axis("off")
        right.text(0.5, 0.5, "every head is a sink in all prompts\nor in none", ha="center", va="center")
    prompts = f"n = {counts['all']} prompts cut to {int(n)} tokens"
    details = f"{persistence['model'].iloc[0]}, {prompts}, {_score(persistence)}"
    headline(figure, messages.by_set(rows["sink_fraction"], int(n)), details)
    return figure


def _score(table: pd.DataFrame) -> str:
    return f"sink score ≥ {table['threshold'].iloc[0]:g}"
