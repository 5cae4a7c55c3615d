"""Why sinks are where they are: activations by layer, and the positions that draw attention."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sinkstudy.figures import messages
from sinkstudy.figures.style import (
    COLOURS,
    COLUMN,
    MARKERS,
    NULL_STYLE,
    PAGE,
    band,
    headline,
    length_axis,
    light_grid,
    new_figure,
    series_style,
    styled,
)
from sinkstudy.stats.positions import EPSILON, KINDS, uniform_attention
from sinkstudy.stats.profile import MIN_TOKENS

_HATCHES = ("", "////", "....")


@styled
def activation_figure(table: pd.DataFrame) -> Figure:
    """First-token activation, mean excess score and value drain of every layer, one above the other.

    `table`: one model's quantities, see `stats.mechanism`.
    """
    shown = {
        "activation": "activation\n(first / others)",
        "excess_score": "mean\nexcess score",
        "value_drain": "value norm\n(first / others)",
    }
    figure, panels = new_figure(COLUMN, 4.0, rows=len(shown), sharex=True)
    prompts = 0
    for i, (ax, (quantity, label)) in enumerate(zip(panels, shown.items(), strict=True)):
        rows = table[table["quantity"] == quantity].sort_values("layer")
        layers, values = rows["layer"].to_numpy(int), rows["value"].to_numpy(float)
        ax.plot(layers, values, marker=MARKERS[i], markersize=3, **series_style(i))
        band(ax, layers, rows["low"], rows["high"], COLOURS[i])
        if quantity == "excess_score":
            ax.axhline(0, **NULL_STYLE)
        else:
            ax.axhline(1, **NULL_STYLE)
            known = values[np.isfinite(values)]
            if len(known) and known.min() > 0:
                ax.set_yscale("log")
                ends = min(known.min(), 0.5), max(known.max(), 2)
                ticks = [t for t in (0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 100, 1000, 10000) if ends[0] <= t <= ends[1]]
                ticks = [t for t in ticks if np.log10(t) % 1 == 0] if ends[1] / ends[0] > 30 else ticks
                ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
                ax.minorticks_off()
            else:
                ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center")
        ax.set_ylabel(label)
        light_grid(ax)
        prompts = rows["count"].max() if len(rows) else 0
    panels[-1].set_xlabel("layer")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    name = table["model"].iloc[0] if len(table) else ""
    details = f"{name}, n = {prompts} prompts; bands: 95% over prompts; dotted: as other tokens, or uniform attention"
    headline(figure, messages.activation(table), details)
    return figure


@styled
def position_figure(positions: pd.DataFrame, shares: pd.DataFrame, model: str) -> Figure:
    """The strongest receivers of every prompt by position and kind, and at which kind of token each layer's sinks are.

    `positions`, `shares`: see `strongest_receivers` and `sink_shares` in `stats.positions`.
    """
    figure, (left, right) = new_figure(PAGE, 2.9, columns=2)
    for i, kind in enumerate(KINDS if len(positions) else ()):
        rows = positions[positions["kind"] == kind]
        style = {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": "none", "markersize": 3, "alpha": 0.7}
        left.plot(rows["position"] + 1, rows["mean_attention"], **style, label=messages.KIND_NAMES[kind])
    if len(positions):
        longest = int(positions["n_tokens"].max())
        label = f"uniform, {longest} tokens"
        left.plot(np.arange(1, longest + 1), uniform_attention(longest), **NULL_STYLE, label=label)
        left.set_yscale("log")
        length_axis(left, longest)
        left.set_xticks(*zip(*[(tick, str(int(tick))) for tick in left.get_xticks()[::2]], strict=True))
    left.set(xlabel="position (1: the first token)", ylabel="mean attention received")
    left.set_title("the strongest receivers\nof every prompt", fontsize=7.5)
    light_grid(left)
    bottom = np.zeros(len(shares))
    for i, kind in enumerate(KINDS):
        share = 100 * shares[kind].to_numpy(float)
        style = {"color": COLOURS[i], "hatch": _HATCHES[i], "linewidth": 0}
        right.bar(shares.index, share, 0.85, bottom, **style, label=messages.KIND_NAMES[kind])
        bottom += share
    right.xaxis.get_major_locator().set_params(integer=True)
    right.set(xlabel="layer", ylabel="heads and prompts (%)", ylim=(0, 103))
    if not bottom.any():
        said = "no head has a sink" if len(shares) else "not measured"
        right.text(0.5, 0.5, said, transform=right.transAxes, ha="center")
    right.set_title(f"heads with a sink (≥ {EPSILON:g}),\nby the token that it is at", fontsize=7.5)
    handles, labels = (left if len(positions) else right).get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    prompts = positions["prompt"].nunique() if len(positions) else 0
    details = f"{model}, n = {prompts} prompts of {MIN_TOKENS} tokens or more; a sink draws {EPSILON:g} or more"
    headline(figure, messages.positions(shares), details)
    return figure
