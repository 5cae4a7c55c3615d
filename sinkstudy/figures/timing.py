"""Measured speed of optimized attention beside its baselines."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator

from sinkstudy.figures.style import COLOURS, DASHES, MARKERS, new_figure, styled


@styled
def timing_figure(benchmark: pd.DataFrame) -> Figure:
    """Median time with interquartile range, and speedup over SDPA, against prompt length (smallest batch)."""
    rows = benchmark[(benchmark["phase"] == "prefill") & (benchmark["batch"] == benchmark["batch"].min())]
    figure, (left, right) = new_figure(6.8, 3.1, columns=2)
    for i, ((strategy, policy), part) in enumerate(rows.groupby(["strategy", "policy"], sort=False)):
        part = part.sort_values("n_tokens")
        name = strategy if policy == "none" else f"{strategy}, {policy}"
        style = {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": DASHES[i % len(DASHES)],
            "marker": MARKERS[i % len(MARKERS)],
            "markersize": 3.5,
        }
        left.errorbar(part["n_tokens"], 1e3 * part["median_s"], 1e3 * part["iqr_s"] / 2, capsize=2, label=name, **style)
        right.plot(part["n_tokens"], part["speedup_vs_sdpa"], **style)
    left.set(xscale="log", yscale="log", ylabel="median time per pass (ms), bars: IQR", title="Prefill time")
    right.axhline(1.0, color="0.35", linewidth=1.0)
    right.set(xscale="log", ylabel="speedup over SDPA (above 1: faster)", title="Prefill speedup over SDPA")
    for ax in (left, right):
        ax.set_xlabel("prompt length (tokens)")
        ax.set_xticks(sorted(rows["n_tokens"].unique()), [str(n) for n in sorted(rows["n_tokens"].unique())])
        ax.minorticks_off()
        ax.grid(alpha=0.25, linewidth=0.5)
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    figure.legend(loc="outside lower center", ncols=3)
    device = rows["device"].iloc[0]
    figure.suptitle(f"{rows['model'].iloc[0]} on {device}, batch {rows['batch'].iloc[0]}")
    return figure
