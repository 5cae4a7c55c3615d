"""Simulated matrices, watermarked as such."""

import numpy as np
from matplotlib.figure import Figure

from sinkstudy.figures import messages, style

_WATERMARK = {"rotation": 35, "ha": "center", "va": "center", "fontsize": 10, "weight": "bold", "alpha": 0.6}
_WATERMARK |= {"clip_on": True, "in_layout": False}


@style.styled
def simulated_figure(preset: str, lengths: list[int], scores: np.ndarray, is_sink: np.ndarray) -> Figure:
    """`scores` and `is_sink` (length, layer, head): scores above, sink decisions below, a column per length."""
    columns = len(lengths)
    width = max(style.COLUMN, min(style.PAGE, 1.1 * columns + 0.8))
    figure, axes = style.new_figure(width, 3.1, columns, rows=2, sharex=True, sharey=True)
    for i, n in enumerate(lengths):
        top, bottom = axes[i], axes[columns + i]
        image = top.imshow(scores[i], cmap=style.SCORE_MAP, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        bottom.imshow(is_sink[i], cmap="Greys", vmin=0, vmax=1.6, aspect="auto", interpolation="nearest")
        top.set_title(f"{n} tokens")
        bottom.set_title(f"{100 * is_sink[i].mean():.1f}% sinks", fontsize=7)
        for ax, colour in ((top, "white"), (bottom, "0.35")):
            ax.text(0.5, 0.5, "SIMULATED", transform=ax.transAxes, color=colour, **_WATERMARK)
    for ax in (axes[0], axes[columns]):
        ax.set_ylabel("simulated layer")
    figure.supxlabel("simulated head", fontsize=8)
    figure.colorbar(image, ax=axes[:columns], label="simulated score", pad=0.02)
    shape = f"n = {scores[0].size} heads ({scores.shape[1]} layers of {scores.shape[2]})"
    details = f"{preset}, {shape}; above scores, below sinks (dark)"
    return style.headline(figure, messages.simulated(lengths, is_sink), details)
