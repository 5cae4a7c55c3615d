"""Attention maps of single heads."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from sinkstudy.figures.style import SCORE_MAP, new_figure, styled

_MAX_LABELS = 40
_MARKS = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})


@dataclass(frozen=True)
class ExampleMap:
    """One head's map (query, key) of one prompt, with what it is an example of."""

    kind: str
    layer: int
    head: int
    score: float
    attention: np.ndarray


@styled
def maps_figure(model: str, prompt: str, tokens: list[str], examples: list[ExampleMap]) -> Figure:
    """Example maps side by side; token labels where there are few enough to read."""
    figure, axes = new_figure(2.6 * len(examples) + 0.6, 3.5, columns=len(examples))
    for ax, example in zip(axes, examples, strict=True):
        image = ax.imshow(example.attention, cmap=SCORE_MAP, vmin=0, vmax=1, interpolation="nearest")
        ax.set_title(f"{example.kind}: layer {example.layer}, head {example.head}\nsink score {example.score:.2f}")
        ax.set(xlabel="key", ylabel="query")
        ax.spines[["top", "right"]].set_visible(True)
        if len(tokens) <= _MAX_LABELS:
            labels = [_visible(t) for t in tokens]
            size = 6 if len(tokens) <= 20 else 4.5
            ax.set_xticks(range(len(tokens)), labels, rotation=90, fontsize=size)
            ax.set_yticks(range(len(tokens)), labels, fontsize=size)
    figure.colorbar(image, ax=axes, shrink=0.7, label="attention")
    figure.suptitle(f"{model}, prompt “{prompt}” ({len(tokens)} tokens)")
    return figure


def _visible(token: str) -> str:
    """A token as a short label: white space shown, what the font cannot draw as a box, matplotlib's math defused."""
    glyphs = get_font(findfont("DejaVu Sans"))
    marked = token.translate(_MARKS)
    shown = "".join(c if c.isprintable() and glyphs.get_char_index(ord(c)) else "□" for c in marked)
    return (shown if len(shown) <= 12 else shown[:11] + "…").replace("$", r"\$")
