"""Why sinks are where they are: activations by layer, and the positions that draw attention."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sinkstudy.figures import messages, style
from sinkstudy.stats.positions import EPSILON, KINDS, uniform_attention
from sinkstudy.stats.profile import MIN_TOKENS

_RATIO_TICKS = (0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 100, 1000, 10000)


@style.styled
def activation_figure(table: pd.DataFrame) -> Figure:
    """First-token activation, mean excess score and value drain of every layer, one above the other.

    `table`: one model's quantities, see `stats.mechanism`.
    """
    shown = {
        "activation": "activation\n(first / others)",
        "excess_score": "mean\nexcess score",
        "value_drain": "value norm\n(first / others)",
    }
    figure, panels = style.new_figure(style.COLUMN, 4.0, rows=len(shown), sharex=True)
    for i, (ax, (quantity, label)) in enumerate(zip(panels, shown.items(), strict=True)):
        rows = table[table["quantity"] == quantity].astype({"layer": int, "value": float})
        ax.plot(rows["layer"], rows["value"], marker=style.MARKERS[i], markersize=3, **style.series_style(i))
        style.band(ax, rows["layer"], rows["low"], rows["high"], style.COLOURS[i])
        is_ratio, known = quantity != "excess_score", rows["value"][np.isfinite(rows["value"])]
        ax.axhline(1 if is_ratio else 0, **style.NULL_STYLE)
        if is_ratio and known.min() > 0:
            low, high = min(known.min(), 0.5), max(known.max(), 2)
            ticks = [tick for tick in _RATIO_TICKS if low <= tick <= high]
            ticks = [tick for tick in ticks if np.log10(tick) % 1 == 0] if high / low > 30 else ticks
            ax.set_yscale("log")
            ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            ax.minorticks_off()
        elif is_ratio:
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center")
        ax.set_ylabel(label)
        style.light_grid(ax)
    panels[-1].set_xlabel("layer")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    name, prompts = ("", 0) if table.empty else (table["model"].iloc[0], rows["count"].max())
    details = f"{name}, n = {prompts} prompts; bands: 95% over prompts; dotted: as other tokens, or uniform attention"
    return style.headline(figure, messages.activation(table), details)


@style.styled
def position_figure(positions: pd.DataFrame, shares: pd.DataFrame, model: str) -> Figure:
    """The strongest receivers of every prompt by position and kind, and at which kind of token each layer's sinks are.

    `positions`, `shares`: see `strongest_receivers` and `sink_shares` in `stats.positions`.
    """
    figure, (left, right) = style.new_figure(style.PAGE, 2.9, columns=2)
    if len(positions):
        for i, kind in enumerate(KINDS):
            rows = positions[positions["kind"] == kind]
            look = style.points_style(i) | {"markersize": 3, "alpha": 0.7, "label": messages.KIND_NAMES[kind]}
            left.plot(rows["position"] + 1, rows["mean_attention"], **look)
        longest = positions["n_tokens"].max()
        label = f"uniform, {longest} tokens"
        left.plot(np.arange(1, longest + 1), uniform_attention(longest), **style.NULL_STYLE, label=label)
        left.set_yscale("log")
        style.length_axis(left, longest)
        ticks = left.get_xticks()[::2]
        left.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    left.set(xlabel="position (1: the first token)", ylabel="mean attention received")
    left.set_title("the strongest receivers\nof every prompt", fontsize=7.5)
    style.light_grid(left)
    style.stacked_bars(right, shares.index, shares.rename(columns=messages.KIND_NAMES), 0.85)
    right.xaxis.get_major_locator().set_params(integer=True)
    right.set(xlabel="layer", ylabel="heads and prompts (%)", ylim=(0, 103))
    if not shares.to_numpy().any():
        said = "no head has a sink" if len(shares) else "not measured"
        right.text(0.5, 0.5, said, transform=right.transAxes, ha="center")
    right.set_title(f"heads with a sink (≥ {EPSILON:g}),\nby the token that it is at", fontsize=7.5)
    legend = (left if len(positions) else right).get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower center", ncols=4)
    prompts = positions["prompt"].nunique() if len(positions) else 0
    details = f"{model}, n = {prompts} prompts of {MIN_TOKENS} tokens or more; a sink draws {EPSILON:g} or more"
    return style.headline(figure, messages.positions(shares), details)
