"""Simulated matrices, watermarked as such."""

import numpy as np
from matplotlib.figure import Figure

from sinkstudy.figures.style import SCORE_MAP, new_figure, styled, watermark


@styled
def simulated_figure(preset: str, lengths: list[int], scores: np.ndarray, is_sink: np.ndarray) -> Figure:
    """`scores` and `is_sink` (length, layer, head): scores above, sink decisions below, a column per length."""
    columns = len(lengths)
    figure, axes = new_figure(1.75 * columns + 0.9, 4.1, columns=columns, rows=2, sharex=True, sharey=True)
    for i, n in enumerate(lengths):
        top, bottom = axes[i], axes[columns + i]
        image = top.imshow(scores[i], cmap=SCORE_MAP, vmin=0, vmax=1, aspect="auto")
        bottom.imshow(is_sink[i], cmap="Greys", vmin=0, vmax=1.6, aspect="auto")
        top.set_title(f"{n} tokens")
        bottom.set_title(f"{100 * is_sink[i].mean():.1f}% simulated sinks", fontsize=7)
        bottom.set_xlabel("simulated head")
        watermark(top)
    for ax in (axes[0], axes[columns]):
        ax.set_ylabel("simulated layer")
    figure.colorbar(image, ax=axes[:columns], shrink=0.9, label="simulated score")
    figure.suptitle(f"SIMULATED {preset}: scores (above) and sink decisions (below, dark: sink)")
    return figure
