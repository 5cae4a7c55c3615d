"""Attention maps of single heads, and which of them are worth looking at."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from sinkstudy.figures import messages, style
from sinkstudy.store import open_capture
from sinkstudy.store.tables import LongTable

_READABLE_TOKENS, _MAX_LABELS = 24, 40
_MARKS = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})


@dataclass(frozen=True)
class ExampleMap:
    """One head's map (query, key) of one prompt, with a title that says what it shows."""

    kind: str
    layer: int
    head: int
    score: float
    attention: np.ndarray


def example_maps(captures: list[Path], scores: LongTable) -> tuple[str, list[str], list[ExampleMap]] | None:
    """The strongest sink, the weakest head and the one nearest half, all on one prompt: id, tokens, examples.

    The prompt is the longest whose tokens can still be read as labels, or the shortest with stored maps.
    None where no capture holds maps, since all prompts are longer than `capture.maps_max_tokens`.
    """
    stored: dict[str, tuple[Path, int]] = {}  # file and tokens
    for path in captures:
        with open_capture(path) as file:
            shapes = {prompt: file.shapes(prompt) for prompt in file.prompts}
            stored |= {name: (path, one["attention"][-1]) for name, one in shapes.items() if "attention" in one}
    if not stored:
        return None
    lengths = {name: n for name, (_, n) in sorted(stored.items())}
    readable = [name for name, n in lengths.items() if n <= _READABLE_TOKENS]
    prompt = max(readable, key=lengths.get) if readable else min(lengths, key=lengths.get)
    heads = scores.only(lambda rows: rows["prompt"] == prompt)
    chosen = {
        "highest score": heads["sink_score"].idxmax(),
        "nearest one half": (heads["sink_score"] - 0.5).abs().idxmin(),
        "lowest score": heads["sink_score"].idxmin(),
    }
    examples = []
    with open_capture(stored[prompt][0]) as file:
        for kind, index in chosen.items():
            one = heads.loc[index]
            attention = file.maps(prompt, file.layers.tolist().index(one["layer"]))[one["head"]].astype(float)
            kind += ": a sink" if one["is_sink"] else ": no sink"
            examples.append(ExampleMap(kind, one["layer"], one["head"], one["sink_score"], attention))
        return prompt, file.capture(prompt).tokens, examples


@style.styled
def maps_figure(model: str, prompt: str, tokens: list[str], examples: list[ExampleMap], threshold: float) -> Figure:
    """Example maps side by side; token labels where there are few enough to read."""
    n = len(tokens)
    figure, axes = style.new_figure(style.PAGE, 2.7, columns=len(examples))
    later = np.triu(np.ones((n, n), bool), 1)
    for ax, example in zip(axes, examples, strict=True):
        attention = np.ma.array(example.attention, mask=later)  # keys after the query stay white
        image = ax.imshow(attention, cmap=style.SCORE_MAP, vmin=0, vmax=1, interpolation="nearest")
        ax.set_title(f"{example.kind}\nlayer {example.layer}, head {example.head}: {example.score:.2f}", fontsize=7)
        ax.set(xlabel="key")
        if n <= _MAX_LABELS:
            labels = [_visible(token) for token in tokens]
            size = 6.5 if n <= 16 else 4.5 if n <= 24 else 3.5
            ax.set_xticks(range(n), labels, rotation=90, fontsize=size)
            ax.set_yticks(range(n), labels if ax is axes[0] else [], fontsize=size)
            ax.tick_params(length=1.5, pad=1)
    axes[0].set_ylabel("query")
    figure.colorbar(image, ax=axes, shrink=0.6, label="attention", pad=0.02)
    details = f"{model}, prompt {prompt}: n = {n} tokens; a sink has a sink score ≥ {threshold:g}"
    return style.headline(figure, messages.of_examples([example.score for example in examples]), details)


def no_maps_figure(model: str) -> Figure:
    """What stands in the place of maps that were not stored."""
    details = f"{model}: every prompt is longer than capture.maps_max_tokens"
    return style.nothing_figure("No attention maps are stored", details)


def _visible(token: str) -> str:
    """A token as a short label: white space shown, missing glyphs as boxes, dollar signs escaped for matplotlib."""
    glyphs = get_font(findfont("DejaVu Sans"))
    marked = token.translate(_MARKS)
    shown = "".join(c if c.isprintable() and glyphs.get_char_index(ord(c)) else "□" for c in marked)
    return (shown if len(shown) <= 12 else shown[:11] + "…").replace("$", r"\$")
