"""One look for every figure, and one way to save it."""

import textwrap
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from numpy.typing import ArrayLike

from sinkstudy.store import atomic_write

# Widths in inches. Printed at a column's width (3.4 in), text of the wide figures is still at least 5 points.
COLUMN, PAGE = 3.4, 5.4
SCORE_MAP = "cividis"  # even in lightness, so it reads in greyscale and with any colour vision
# Okabe-Ito colours, ordered so that neighbours differ in greyscale too; line styles and markers differ with them.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), "-")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_HATCHES = ("", "////", "....", "xxxx")
NULL_STYLE = {"color": "black", "linestyle": (0, (2, 2)), "linewidth": 1.2, "zorder": 3}  # above a model that equals it
THRESHOLD_STYLE = {"color": "#B00020", "linestyle": "-", "linewidth": 1.0}

_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "figure.titlesize": 8.5,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.4,
    "hatch.linewidth": 0.6,
    "savefig.dpi": 200,
    "svg.hashsalt": "sinkstudy",  # element ids are random without it
    "svg.fonttype": "path",
    "pdf.compression": 6,
    "pdf.fonttype": 42,  # Journals refuse matplotlib's default, Type 3 fonts.
}
# Without the date and the program in a file, the same data gives the same bytes.
_METADATA = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
_MESSAGE_LETTERS, _DETAIL_LETTERS = 14, 18.5  # So many letters of wide text fit in an inch.


# This decorates all that draws or saves, because matplotlib reads settings when it creates artists and when it writes.
styled = mpl.rc_context(_RC)


def new_figure(
    width: float, height: float, columns: int = 1, rows: int = 1, **grid: object
) -> tuple[Figure, list[Axes]]:
    """A figure of `width` x `height` inches with its axes in reading order."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **grid).ravel().tolist()


def series_style(i: int) -> dict[str, object]:
    """Colour and line style of the i-th series; they repeat after seven."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}


def points_style(i: int) -> dict[str, object]:
    """Colour and marker of the i-th series, without a line."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "linestyle": "none"}


def band(axes: Axes, x: ArrayLike, low: ArrayLike, high: ArrayLike, color: str) -> None:
    """An interval around a line, pale enough to see through; undefined stretches stay empty."""
    axes.fill_between(x, np.asarray(low, float), np.asarray(high, float), color=color, alpha=0.2, linewidth=0)


def length_curve(axes: Axes, i: int, rows: pd.DataFrame, column: str, scale: float = 1, **look: object) -> None:
    """The i-th series: `scale` times a column of `rows` over `n_tokens`, and its interval from `_low` to `_high`."""
    axes.plot(rows["n_tokens"], scale * rows[column], **series_style(i), **look)
    low, high = (scale * rows[f"{column}_{end}"] for end in ("low", "high"))
    band(axes, rows["n_tokens"], low, high, series_style(i)["color"])


def stacked_bars(axes: Axes, x: ArrayLike, shares: pd.DataFrame, width: float) -> None:
    """Percentages on top of each other: a bar per row of `shares`, a part, with its name, per column."""
    bottom = np.zeros(len(shares))
    for i, (name, share) in enumerate((100 * shares.astype(float).fillna(0)).items()):
        axes.bar(x, share, width, bottom, color=COLOURS[i], hatch=_HATCHES[i], linewidth=0, label=name)
        bottom += share


def light_grid(axes: Axes) -> None:
    axes.grid(color="0.88", linewidth=0.5)
    axes.set_axisbelow(True)


def length_axis(axes: Axes, longest: int) -> None:
    """A logarithmic axis of prompt lengths with plain numbers at it, and a grid."""
    axes.set_xscale("log")
    ticks = [n for n in (1, 2, 5, 10, 24, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768) if n <= longest]
    ticks = ticks[:: 1 + len(ticks) // 10]
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.set_xlabel("prompt length (tokens)")
    light_grid(axes)


def layer_ticks(set_ticks: Callable[..., object], layers: ArrayLike) -> None:
    """Rows or columns named by their layers, as many as do not touch."""
    step = max(1, len(layers) // 8)
    set_ticks(range(0, len(layers), step), layers[::step])


def headline(figure: Figure, message: str, details: str) -> Figure:
    """The figure, with its one message as its title and, small below, what it was measured on (model, n, threshold)."""
    width = figure.get_figwidth()
    said, below = (_lines(message, int(_MESSAGE_LETTERS * width)), _lines(details, int(_DETAIL_LETTERS * width)))
    # Constrained layout does not see the details, so empty lines of the title keep their place.
    room = "\n" * (1 + below.count("\n"))
    plain = {"ha": "left", "parse_math": False}  # names may have dollar signs
    title = figure.suptitle(said + room, x=0.01, weight="bold", **plain)
    small = {"fontsize": 7, "color": "0.3", "va": "bottom", "annotation_clip": False}
    figure.add_artist(Annotation(below, (0, 0), xycoords=title, **small, **plain))
    return figure


def _lines(text: str, letters: int) -> str:
    """`text` in as few lines of at most so many letters as it takes, all about equally long, without a break beside
    an equals sign or after a comparison."""
    joined = text.replace(" = ", "\u00a0=\u00a0").replace("≥ ", "≥\u00a0")
    fewest = len(textwrap.wrap(joined, letters))
    width = next(n for n in range(1, letters + 1) if len(textwrap.wrap(joined, n)) <= fewest)
    return textwrap.fill(joined, width).replace("\u00a0", " ")


@styled
def nothing_figure(message: str, details: str) -> Figure:
    """What stands in the place of a figure that has nothing to draw."""
    figure, (ax,) = new_figure(PAGE, 0.7)
    ax.axis("off")
    return headline(figure, message, details)


@styled
def save(figure: Figure, png: Path | str) -> None:
    """Write the figure to `png`, and beside it as SVG and PDF, all with its title and without dates.

    The same data gives the same bytes.
    """
    title = " ".join(figure.get_suptitle().split())
    for kind, metadata in _METADATA.items():
        with atomic_write(Path(png).with_suffix(f".{kind}")) as temporary:
            figure.savefig(temporary, format=kind, metadata=metadata | {"Title": title})
        figure.set_layout_engine("none")  # The first drawing has placed everything, for all formats.
