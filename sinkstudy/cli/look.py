"""`sinkstudy look`: the heads of a model on a text or a few, in the terminal."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from rich.columns import Columns
from rich.console import Console, Group
from rich.style import Style
from rich.text import Text

from sinkstudy.capture.recording import record
from sinkstudy.cli.models import model_of
from sinkstudy.explorer import write_page
from sinkstudy.prompts import Prompt
from sinkstudy.stats.scores import score_tables
from sinkstudy.store import open_capture, read_captures
from sinkstudy.store.tables import write_table

_MAPS_MAX_TOKENS = 128
_DARK = 0.6  # scores from here on have a light background and dark digits


def look(
    texts: list[str],
    named: str | None,
    given: Mapping[str, Any],
    threshold: float,
    html: Path | None = None,
    csv: Path | None = None,
) -> None:
    """Print the scores of every head on every text; where `html` and `csv` name files, write the explorer's page and
    the table of scores as a study has it."""
    name, loaded = model_of(named, given)
    prompts = [Prompt(f"text_{i}", "look", text) for i, text in enumerate(texts, 1)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "look.h5"
        record(path, name, loaded, prompts, _MAPS_MAX_TOKENS)
        scores = pd.concat(score_tables(read_captures([path]), name, threshold))
        with open_capture(path) as file:
            tokens = {prompt: file.capture(prompt).tokens for prompt in file.prompts}
        if html is not None:
            write_page({name: [path]}, [threshold], threshold, html)
    if csv is not None:
        write_table(scores, csv)
    origin = loaded.provenance
    console = Console(highlight=False)
    console.print(f"{name}: {origin['source']} ({origin['revision'][:23]}), {origin['dtype']}, bos {origin['bos']}")
    if origin["quantization"] != "none":
        console.print(f"weights {origin['quantization']}")
    shown = [_shown(scores[scores["prompt"] == prompt.id], tokens[prompt.id], threshold) for prompt in prompts]
    console.print(Columns(shown, padding=(1, 4)))
    if html is not None:
        console.print(f"The explorer with these texts is {html}.")


def _shown(scores: pd.DataFrame, tokens: list[str], threshold: float) -> Group:
    """A heading, the numbers of all heads together, and the map of scores (a row of `scores` per layer and head)."""
    first, heads = scores.iloc[0], scores["head"].nunique()
    sinks = int(scores["is_sink"].sum())
    about = [
        f"{_abridged(''.join(tokens))}  ({first['n_tokens']} tokens)",
        f"sinks at {threshold:g}: {sinks} of {len(scores)} heads ({sinks / len(scores):.2%})",
        f"mean score {scores['sink_score'].mean():.3f}, null {first['null_score']:.3f}, "
        f"mean excess {scores['excess_score'].mean():.3f}",
        f"first token {tokens[0]!r}",
    ]
    rows = [Text("layer " + "".join(f"{head:>3}" for head in range(heads)), style="dim")]
    for layer, part in scores.groupby("layer"):
        cells = [_cell(score) for score in part["sink_score"]]
        rows.append(Text.assemble(f"{layer:>5} ", *cells))
    return Group(*about, *rows)


def _cell(score: float) -> tuple[str, Style]:
    """A score in hundredths on its colour; 100 is written as **, so that columns stay apart."""
    hundredths = round(100 * score)
    red, green, blue, _ = mpl.colormaps["viridis"](score, bytes=True)
    style = Style(color="black" if score >= _DARK else "white", bgcolor=f"rgb({red},{green},{blue})")
    return (f" {hundredths:>2}" if hundredths < 100 else " **"), style


def _abridged(text: str, characters: int = 40) -> str:
    text = " ".join(text.split())
    return text if len(text) <= characters else f"{text[: characters - 1]}…"
