"""Attention maps of single heads."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from sinkstudy.figures import messages
from sinkstudy.figures.style import PAGE, SCORE_MAP, headline, new_figure, nothing_figure, styled

_MAX_LABELS = 40
_MARKS = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})


@dataclass(frozen=True)
class ExampleMap:
    """One head's map (query, key) of one prompt, with a title that says what it shows."""

    kind: str
    layer: int
    head: int
    score: float
    attention: np.ndarray


@styled
def maps_figure(model: str, prompt: str, tokens: list[str], examples: list[ExampleMap], threshold: float) -> Figure:
    """Example maps side by side; token labels where there are few enough to read."""
    labelled = len(tokens) <= _MAX_LABELS
    figure, axes = new_figure(PAGE, 2.7, columns=len(examples))
    later = np.triu(np.ones((len(tokens), len(tokens)), bool), 1)
    for ax, example in zip(axes, examples, strict=True):
        attention = np.ma.array(example.attention, mask=later)  # keys after the query stay white
        image = ax.imshow(attention, cmap=SCORE_MAP, vmin=0, vmax=1, interpolation="nearest")
        ax.set_title(f"{example.kind}\nlayer {example.layer}, head {example.head}: {example.score:.2f}", fontsize=7)
        ax.set(xlabel="key")
        if labelled:
            labels = [_visible(t) for t in tokens]
            size = 6.5 if len(tokens) <= 16 else 4.5 if len(tokens) <= 24 else 3.5
            ax.set_xticks(range(len(tokens)), labels, rotation=90, fontsize=size)
            ax.set_yticks(range(len(tokens)), labels if ax is axes[0] else [], fontsize=size)
            ax.tick_params(length=1.5, pad=1)
    axes[0].set_ylabel("query")
    figure.colorbar(image, ax=axes, shrink=0.6, label="attention", pad=0.02)
    details = f"{model}, prompt {prompt}: n = {len(tokens)} tokens; a sink has a sink score ≥ {threshold:g}"
    headline(figure, messages.of_examples([example.score for example in examples]), details)
    return figure


@styled
def no_maps_figure(model: str) -> Figure:
    """What stands in the place of maps that were not stored."""
    return nothing_figure(
        "No attention maps are stored", f"{model}: every prompt is longer than capture.maps_max_tokens"
    )


def _visible(token: str) -> str:
    """A token as a short label: white space shown, missing glyphs as boxes, dollar signs escaped for matplotlib."""
    glyphs = get_font(findfont("DejaVu Sans"))
    marked = token.translate(_MARKS)
    shown = "".join(c if c.isprintable() and glyphs.get_char_index(ord(c)) else "□" for c in marked)
    return (shown if len(shown) <= 12 else shown[:11] + "…").replace("$", r"\$")
