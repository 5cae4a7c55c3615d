"""Measured sink fractions per layer beside what simulators predict for prompts they were not fitted to."""

import pandas as pd
from matplotlib.figure import Figure

from sinkstudy.figures import messages
from sinkstudy.figures.style import PAGE, headline, light_grid, new_figure, nothing_figure, series_style, styled

_PANELS = 4
_SIMULATORS = (("formula", "SIMULATED: original formula"), ("calibrated", "SIMULATED: calibrated on the other half"))


@styled
def heldout_figure(heldout: pd.DataFrame, lengths: list[int]) -> Figure:
    """A panel per length: each layer's measured sink percentage, with its interval, of both halves of the prompts.

    `heldout` holds one model and threshold of the table of held-out predictions; those of `lengths` in it are drawn.
    """
    layers = heldout[heldout["quantity"] == "layer"]
    shown = [n for n in lengths if (layers["n_tokens"] == n).any()][:_PANELS]
    if not shown:
        return nothing_figure("too few prompts to predict one half from the other", "nothing is simulated")
    figure, axes = new_figure(PAGE, 2.7, columns=len(shown), sharey=True)
    for ax, n in zip(axes, shown, strict=True):
        part = layers[layers["n_tokens"] == n]
        prompts = part.groupby("held_out_half")["prompts"].first()
        for half, shift, marker in ((0, -0.12, "o"), (1, 0.12, "s")):
            rows = part[(part["held_out_half"] == half) & (part["simulator"] == "formula")].sort_values("layer")
            if rows.empty:
                continue
            x, y = rows["layer"].astype(float) + shift, 100 * rows["measured"]
            ax.vlines(x, 100 * rows["ci_low"], 100 * rows["ci_high"], color="black", linewidth=1)
            label = f"measured, half {half + 1}"
            ax.plot(x, y, marker=marker, color="black", markersize=3, linestyle="none", label=label)
        for i, (simulator, label) in enumerate(_SIMULATORS):
            rows = part[part["simulator"] == simulator].groupby("layer")["predicted"].mean().sort_index()
            ax.plot(rows.index.astype(float), 100 * rows, **series_style(1 - i), label=label)
        ax.set(xlabel="layer", ylim=(-3, 103), title=f"{n} tokens\nn = {' + '.join(map(str, prompts))} prompts")
        ax.title.set_fontsize(7)
        ax.xaxis.get_major_locator().set_params(integer=True)
        light_grid(ax)
    axes[0].set_ylabel("sink heads (% of the layer)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    first = heldout.iloc[0]
    details = f"{first['model']}, sink score ≥ {first['threshold']:g}; points measured (bars: 95%), lines SIMULATED"
    headline(figure, messages.held_out(layers[layers["n_tokens"].isin(shown)]), details)
    return figure
