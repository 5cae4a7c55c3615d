"""Measured sink fractions per layer beside what simulators predict for prompts they were not fitted to."""

import pandas as pd
from matplotlib.figure import Figure

from sinkstudy.figures import messages, style

_PANELS = 4
# Each half of the prompts has a distance from the layer's place and a marker.
_HALVES = ((-0.12, "o"), (0.12, "s"))
_SIMULATORS = (("formula", "SIMULATED: original formula"), ("calibrated", "SIMULATED: calibrated on the other half"))


@style.styled
def heldout_figure(heldout: pd.DataFrame, lengths: list[int]) -> Figure:
    """A panel per length: each layer's measured sink percentage, with its interval, of both halves of the prompts.

    `heldout` holds one model and threshold of the table of held-out predictions; those of `lengths` in it are drawn.
    """
    layers = heldout[heldout["quantity"] == "layer"]
    shown = [n for n in lengths if (layers["n_tokens"] == n).any()][:_PANELS]
    if not shown:
        return style.nothing_figure("too few prompts to predict one half from the other", "nothing is simulated")
    figure, axes = style.new_figure(style.PAGE, 2.7, columns=len(shown), sharey=True)
    for ax, n in zip(axes, shown, strict=True):
        part = layers[layers["n_tokens"] == n]
        prompts = part.groupby("held_out_half")["prompts"].first()
        for half, rows in part[part["simulator"] == "formula"].groupby("held_out_half"):
            shift, marker = _HALVES[half]
            x, label = rows["layer"].astype(float) + shift, f"measured, half {half + 1}"
            ax.vlines(x, 100 * rows["ci_low"], 100 * rows["ci_high"], color="black", linewidth=1)
            ax.plot(x, 100 * rows["measured"], marker, color="black", markersize=3, label=label)
        for i, (simulator, label) in enumerate(_SIMULATORS):
            rows = part[part["simulator"] == simulator].groupby("layer")["predicted"].mean()
            ax.plot(rows.index.astype(float), 100 * rows, **style.series_style(1 - i), label=label)
        ax.set(xlabel="layer", ylim=(-3, 103))
        ax.set_title(f"{n} tokens\nn = {' + '.join(map(str, prompts))} prompts", fontsize=7)
        ax.xaxis.get_major_locator().set_params(integer=True)
        style.light_grid(ax)
    axes[0].set_ylabel("sink heads (% of the layer)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    first = heldout.iloc[0]
    details = f"{first['model']}, sink score ≥ {first['threshold']:g}; points measured (bars: 95%), lines SIMULATED"
    return style.headline(figure, messages.held_out(layers[layers["n_tokens"].isin(shown)]), details)
