"""Simulated matrices, watermarked as such."""

import numpy as np
from matplotlib.figure import Figure

from sinkstudy.figures import messages
from sinkstudy.figures.style import COLUMN, PAGE, SCORE_MAP, headline, new_figure, styled, watermark


@styled
def simulated_figure(preset: str, lengths: list[int], scores: np.ndarray, is_sink: np.ndarray) -> Figure:
    """`scores` and `is_sink` (length, layer, head): scores above, sink decisions below, a column per length."""
    columns = len(lengths)
    figure, axes = new_figure(
        max(COLUMN, min(PAGE, 1.1 * columns + 0.8)), 3.1, columns, rows=2, sharex=True, sharey=True
    )
    for i, n in enumerate(lengths):
        top, bottom = axes[i], axes[columns + i]
        image = top.imshow(scores[i], cmap=SCORE_MAP, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        bottom.imshow(is_sink[i], cmap="Greys", vmin=0, vmax=1.6, aspect="auto", interpolation="nearest")
        top.set_title(f"{n} tokens")
        bottom.set_title(f"{100 * is_sink[i].mean():.1f}% sinks", fontsize=7)
        watermark(top)
        watermark(bottom, color="0.35")
    for ax in (axes[0], axes[columns]):
        ax.set_ylabel("simulated layer")
    figure.supxlabel("simulated head", fontsize=8)
    figure.colorbar(image, ax=axes[:columns], label="simulated score", pad=0.02)
    shape = f"n = {scores[0].size} heads ({scores.shape[1]} layers of {scores.shape[2]})"
    headline(figure, messages.simulated(lengths, is_sink), f"{preset}, {shape}; above scores, below sinks (dark)")
    return figure
