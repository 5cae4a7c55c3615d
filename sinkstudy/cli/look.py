"""`sinkstudy look`: the heads of a model on a text or a few, in the terminal."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from rich.columns import Columns
from rich.console import Console, Group
from rich.style import Style
from rich.text import Text

from sinkstudy.capture.recording import record
from sinkstudy.cli.models import model_of
from sinkstudy.explorer import write_page
from sinkstudy.measures.captured import Capture
from sinkstudy.prompts import Prompt
from sinkstudy.stats.positions import EPSILON, sink_position_tables
from sinkstudy.stats.reduction import Needs, reduced
from sinkstudy.stats.scores import score_tables
from sinkstudy.store import read_captures
from sinkstudy.store.tables import write_table

_MAPS_MAX_TOKENS, _POSITIONS_MAX_TOKENS = 512, 2048
_HEADING = 40  # characters of a text
_MOST_TOKENS = 5  # So many tokens are listed as places of sinks.
_LEGEND = "Sink scores in hundredths, ** is 100; activation: the first token's residual norm over the others' median."
_DARK = 0.6  # scores from here on have a light background and dark digits


def look(
    texts: list[str],
    named: str | None,
    given: Mapping[str, Any],
    threshold: float,
    html: Path | None,
    csv: Path | None,
) -> None:
    """Print the scores of every head on every text; where `html` and `csv` name files, write the explorer's page and
    the table of scores as a study has it."""
    name, loaded = model_of(named, given)
    prompts = [Prompt(f"text_{i}", "look", text) for i, text in enumerate(texts, 1)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "look.h5"
        record(path, name, loaded, prompts, _MAPS_MAX_TOKENS, _POSITIONS_MAX_TOKENS)
        seen = reduced(read_captures([path]), Needs([threshold], []))
        scores, places = pd.concat(score_tables(seen, name, threshold)), pd.concat(sink_position_tables(seen, name))
        captures = {capture.prompt: capture for capture in read_captures([path])}
        if html is not None:
            write_page({name: [path]}, [threshold], threshold, html)
    if csv is not None:
        write_table(scores, csv)
    origin = loaded.provenance
    console = Console(highlight=False)
    console.print(f"{name}: {origin['source']} ({origin['revision'][:23]}), {origin['dtype']}, bos {origin['bos']}")
    if origin["quantization"] != "none":
        console.print(f"weights {origin['quantization']}")
    shown = []
    for prompt in (prompt.id for prompt in prompts):
        of_prompt = (table[table["prompt"] == prompt] for table in (scores, places))
        shown.append(_shown(*of_prompt, captures[prompt], threshold))
    console.print(Columns(shown, padding=(1, 4)))
    console.print(_LEGEND, style="dim")
    if html is not None:
        console.print(f"The explorer with these texts is {html}.")


def _shown(scores: pd.DataFrame, places: pd.DataFrame, capture: Capture, threshold: float) -> Group:
    """A heading, the numbers of all heads together, and the map of scores (a row of `scores` per layer and head) with
    the first token's activation entering each layer; `places`: per head, the token that receives most."""
    first, heads, sinks = scores.iloc[0], scores["head"].nunique(), scores["is_sink"].sum()
    text = " ".join("".join(capture.tokens).split())
    about = [
        f"{text if len(text) <= _HEADING else text[: _HEADING - 1] + '…'}  ({first['n_tokens']} tokens)",
        f"sinks at {threshold:g}: {sinks} of {len(scores)} heads ({sinks / len(scores):.2%})",
        f"mean score {scores['sink_score'].mean():.3f}, null {first['null_score']:.3f}, "
        f"mean excess {scores['excess_score'].mean():.3f}",
        f"first token {capture.tokens[0]!r}",
        *_places(places),
    ]
    norms = np.full(len(capture.layers), np.nan) if capture.activation is None else capture.activation
    rows = [Text("layer " + "".join(f"{head:>3}" for head in range(heads)) + "  activation", style="dim")]
    for (layer, part), norm in zip(scores.groupby("layer"), norms, strict=True):
        cells = [_cell(score) for score in part["sink_score"]]
        rows.append(Text.assemble(f"{layer:>5} ", *cells, "" if np.isnan(norm) else f"  {norm:.1f}"))
    return Group(*about, *rows)


def _places(places: pd.DataFrame) -> list[str]:
    """Lines on the tokens to which most heads give most, from a row per head: where the sinks are, first or not."""
    if places.empty:
        return []
    counts = places.groupby(["position", "token"])["mean_attention"].agg(["size", "mean"])
    lines = [
        f"  token {position + 1} '{token}': {size:.0f} of {len(places)} heads, mean attention {mean:.3f}"
        for (position, token), (size, mean) in counts.nlargest(_MOST_TOKENS, "size").iterrows()
    ]
    strong = (places["mean_attention"] >= EPSILON).sum()
    return [f"where heads attend most ({strong} of {len(places)} with {EPSILON:g} or more):", *lines]


def _cell(score: float) -> tuple[str, Style]:
    """A score in hundredths on its colour; 100 is written as **, so that columns stay apart."""
    hundredths = round(100 * score)
    red, green, blue, _ = mpl.colormaps["viridis"](score, bytes=True)
    style = Style(color="black" if score >= _DARK else "white", bgcolor=f"rgb({red},{green},{blue})")
    return (f" {hundredths:>2}" if hundredths < 100 else " **"), style
