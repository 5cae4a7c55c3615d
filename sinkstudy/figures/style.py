"""One look for every figure, and one way to save it."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

SCORE_MAP = "cividis"  # even in lightness, so it reads in greyscale and with any colour vision
# Okabe-Ito colours in an order whose greys differ; line styles and markers repeat the distinction.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), "-")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
NULL_STYLE = {"color": "0.35", "linestyle": (0, (2, 2)), "linewidth": 1.2}
THRESHOLD_STYLE = {"color": "#B00020", "linestyle": "-", "linewidth": 1.0}

_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 200,
    "svg.hashsalt": "sinkstudy",  # element ids are random without it
    "svg.fonttype": "path",
}


def new_figure(
    width: float, height: float, columns: int = 1, rows: int = 1, **grid: object
) -> tuple[Figure, list[Axes]]:
    """A figure of `width` x `height` inches with its axes in reading order."""
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False, **grid).ravel().tolist()
    return figure, axes


def save(figure: Figure, png: Path, svg: Path) -> None:
    """Write both formats without dates, so that the same data gives the same bytes."""
    with mpl.rc_context(_RC):
        figure.savefig(png, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None})


def watermark(axes: Axes, text: str = "SIMULATED") -> None:
    """Large pale text across the axes."""
    axes.text(
        0.5,
        0.5,
        text,
        transform=axes.transAxes,
        rotation=35,
        ha="center",
        va="center",
        fontsize=15,
        color="white",
        alpha=0.55,
        weight="bold",
    )
