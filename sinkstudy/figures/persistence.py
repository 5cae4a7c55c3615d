"""In which share of prompts each head is a sink, over all prompts and per prompt set."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sinkstudy.figures import messages, style

_SHOWN_HEADS = 24


@style.styled
def persistence_figure(persistence: pd.DataFrame) -> Figure:
    """The share per layer and head at the longest tabulated length, and the sorted shares of all heads at every length.

    `persistence` holds one model and threshold of the table of persistence, set `all`.
    """
    if persistence.empty:
        return style.nothing_figure("No prompt is long enough to compare heads", "")
    at = {n: rows for n, rows in persistence.groupby("n_tokens")}
    n = max(at)
    prompts = at[n]["prompts"].iloc[0]
    matrix = at[n].pivot(index="layer", columns="head", values="sink_share")
    figure, (left, right) = style.new_figure(style.PAGE, max(2.5, min(4.5, 1.7 + 0.14 * len(matrix))), columns=2)
    image = left.imshow(100 * matrix, cmap=style.SCORE_MAP, vmin=0, vmax=100, aspect="auto")
    figure.colorbar(image, ax=left, label=f"% of n = {prompts} prompts")
    left.set(xlabel="head", ylabel="layer", title=f"sink at {n} tokens")
    style.layer_ticks(left.set_yticks, matrix.index)
    left.spines[["top", "right"]].set_visible(True)
    for i, (length, rows) in enumerate(at.items()):
        rows = rows.sort_values("sink_share", ascending=False)
        place, look = np.arange(1, len(rows) + 1), style.series_style(i)
        label = f"{length} tokens, n = {rows['prompts'].iloc[0]}"
        right.plot(place, 100 * rows["sink_share"], **look, label=label)
        style.band(right, place, 100 * rows["share_low"], 100 * rows["share_high"], look["color"])
    right.set(xlabel="heads, most persistent first", ylabel="sink in % of prompts", ylim=(-2, 102))
    right.set_title("every head, with 95% interval")
    figure.legend(loc="outside lower center", ncols=3)
    return style.headline(figure, messages.persistence(at[n]["sink_share"], n), _details(persistence, n, prompts))


@style.styled
def set_dependence_figure(persistence: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Sink percentage per prompt set with its interval, and the shares of heads that are sinks in some prompts only.

    `persistence` and `curves` hold one model and threshold of their tables, all sets, at any lengths; the longest
    tabulated length is shown, with at most as many heads as fit, those whose shares differ most between sets.
    """
    if persistence.empty:
        return style.nothing_figure("No prompt is long enough to compare sets", "")
    n = persistence["n_tokens"].max()
    persistence = persistence[persistence["n_tokens"] == n]
    sets = [name for name in persistence["set"].unique() if name != "all"]
    counts = persistence.groupby("set")["prompts"].first()
    figure, (left, right) = style.new_figure(style.PAGE, max(2.8, 1.4 + 0.2 * len(sets)), columns=2)
    of_set = curves[curves["n_tokens"] == n].set_index("set").reindex(sets)
    percent = 100 * of_set[["sink_fraction", "sink_fraction_low", "sink_fraction_high"]]
    for place, (share, low, high) in enumerate(percent.itertuples(index=False)):
        look = style.points_style(place)
        left.plot(share, place, **look, zorder=3)
        left.plot([low, high], [place, place], color=look["color"])
    left.set_yticks(range(len(sets)), [f"{name} (n = {counts[name]})" for name in sets])
    left.invert_yaxis()
    most = np.nanmax([1, *percent.to_numpy().ravel()])
    left.set(xlabel="sink heads (% of all heads)", xlim=(-0.02 * most, min(102, 1.1 * most)))
    left.set_title("sinks per set,\n95% interval over prompts")
    style.light_grid(left)
    shares = persistence.pivot(index="set", columns=["layer", "head"], values="sink_share")
    shares = shares.reindex(sets).loc[:, lambda part: (part.max() > 0) & (part.min() < 1)]
    spread = (shares.max() - shares.min()).sort_values(ascending=False, kind="stable")
    shown = sorted(spread.index[:_SHOWN_HEADS])
    if shown:
        image = right.imshow(100 * shares[shown], cmap=style.SCORE_MAP, vmin=0, vmax=100, aspect="auto")
        figure.colorbar(image, ax=right, label="sink in % of the set's prompts")
        right.set_xticks(range(len(shown)), [f"{layer}.{head}" for layer, head in shown], rotation=90, fontsize=5)
        right.set_yticks(range(len(sets)), [])
        right.set_xlabel("layer.head")
        right.set_title(f"{len(shown)} of {shares.shape[1]} heads that are\nsinks in some prompts only")
    else:
        right.axis("off")
        right.text(0.5, 0.5, "every head is a sink in all prompts\nor in none", ha="center", va="center")
    message = messages.by_set(of_set["sink_fraction"], n)
    return style.headline(figure, message, _details(persistence, n, counts["all"]))


def _details(persistence: pd.DataFrame, n: int, prompts: int) -> str:
    first = persistence.iloc[0]
    return f"{first['model']}, n = {prompts} prompts cut to {n} tokens, sink score ≥ {first['threshold']:g}"
