"""One look for every figure, and one way to save it."""

import textwrap
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import matplotlib as mpl
import numpy as np
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
NULL_STYLE = {"color": "black", "linestyle": (0, (2, 2)), "linewidth": 1.2, "zorder": 3}  # above a model that equals it
THRESHOLD_STYLE = {"color": "#B00020", "linestyle": "-", "linewidth": 1.0}
HEAD_STYLE = {"color": "0.45", "linewidth": 0.5}  # one thin line per head

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


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorator: draw with the study's settings, which matplotlib reads when artists are created."""

    @wraps(draw)
    def wrapper(*args: object, **kwargs: object) -> Figure:
        with mpl.rc_context(_RC):
            return draw(*args, **kwargs)

    return wrapper


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


def band(axes: Axes, x: ArrayLike, low: ArrayLike, high: ArrayLike, color: str) -> None:
    """An interval around a line, pale enough to see through; undefined stretches stay empty."""
    axes.fill_between(x, np.asarray(low, float), np.asarray(high, float), color=color, alpha=0.2, linewidth=0)


def light_grid(axes: Axes) -> None:
    axes.grid(color="0.88", linewidth=0.5)
    axes.set_axisbelow(True)


def length_axis(axes: Axes, longest: int) -> None:
    """A logarithmic axis of prompt lengths with plain numbers at it."""
    axes.set_xscale("log")
    ticks = [n for n in (1, 2, 5, 10, 24, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768) if n <= longest]
    ticks = ticks[:: 1 + len(ticks) // 10]
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.set_xlabel("prompt length (tokens)")


def headline(figure: Figure, message: str, details: str) -> None:
    """The figure's one message as its title, and what it was measured on (model, n, threshold) small below it."""
    width = figure.get_figwidth()
    said, below = (_lines(message, int(_MESSAGE_LETTERS * width)), _lines(details, int(_DETAIL_LETTERS * width)))
    # Constrained layout does not see the details, so empty lines of the title keep their place.
    room = "\n" * (1 + below.count("\n"))
    plain = {"ha": "left", "parse_math": False}  # names may have dollar signs
    title = figure.suptitle(said + room, x=0.01, weight="bold", **plain)
    details_style = {"fontsize": 7, "color": "0.3", "va": "bottom", "annotation_clip": False}
    figure.add_artist(Annotation(below, (0, 0), xycoords=title, **details_style, **plain))


def _lines(text: str, letters: int) -> str:
    """`text` in as few lines of at most so many letters as it takes, all about equally long, without a break beside
    an equals sign or after a comparison."""
    joined = text.replace(" = ", "\u00a0=\u00a0").replace("≥ ", "≥\u00a0")
    fewest = len(textwrap.wrap(joined, letters))
    width = next(n for n in range(1, letters + 1) if len(textwrap.wrap(joined, n)) <= fewest)
    return textwrap.fill(joined, width).replace("\u00a0", " ")


def nothing_figure(message: str, details: str) -> Figure:
    """What stands in the place of a figure that has nothing to draw."""
    figure, (ax,) = new_figure(PAGE, 0.7)
    ax.axis("off")
    headline(figure, message, details)
    return figure


def save(figure: Figure, png: Path | str) -> None:
    """Write the figure to `png`, and beside it as SVG and PDF, all with its title and without dates.

    The same data gives the same bytes.
    """
    title = " ".join(figure.get_suptitle().split())
    with mpl.rc_context(_RC):
        for kind, metadata in _METADATA.items():
            with atomic_write(Path(png).with_suffix(f".{kind}")) as temporary:
                figure.savefig(temporary, format=kind, metadata=metadata | {"Title": title})
            figure.set_layout_engine("none")  # the first drawing has placed everything, for all formats


def watermark(axes: Axes, text: str = "SIMULATED", color: str = "white") -> None:
    """Large pale text across the axes."""
    mark = axes.text(0.5, 0.5, text, transform=axes.transAxes, rotation=35, ha="center", va="center", fontsize=10)
    mark.set(color=color, alpha=0.6, weight="bold", clip_on=True)
    mark.set_in_layout(False)
