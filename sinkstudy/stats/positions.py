"""Where the sinks of a prompt are, at the first token or not: the attention that every position receives.

A position's mean attention is over the queries after it. But for the query at the position itself, which is left out
here, that is the importance score of Gu et al. (arXiv 2410.10781), who call a position a sink where it is above 0.3.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from sinkstudy.store import Capture
from sinkstudy.store.kept import EPSILON, Received, candidates, received
from sinkstudy.store.reduced import Reduced

KINDS = ("first", "delimiter", "other")
_ABOUT = ["model", "set", "prompt", "n_tokens"]
_OF_POSITION = ["position", "token", "kind", "mean_attention"]
_OF_ALL_HEADS = ["uniform_attention", "sink_heads", "strongest_heads"]


def kind_of(position: int, token: str) -> str:
    """`first`, `delimiter` (nothing but punctuation, spaces and line breaks) or `other`."""
    if position == 0:
        return "first"
    is_delimiter = all(unicodedata.category(character)[0] in "PZ" or character.isspace() for character in token)
    return "delimiter" if is_delimiter else "other"


def uniform_attention(n: int) -> np.ndarray:
    """What every position of `n` tokens would receive on average from later queries of uniform attention, (key,)."""
    rest = np.cumsum((1 / np.arange(1, n + 1))[::-1])[::-1]  # of the query at a position and those after it
    return np.append(rest[1:] / np.arange(n - 1, 0, -1), np.nan)


def received_of(capture: Capture) -> Received | None:
    """What every position receives from later ones; None where that was not captured, or the prompt has one token."""
    if capture.n_tokens < 2 or (capture.received is None and capture.position_mass is None):
        return None
    return capture.received or received(capture.position_mass)


def position_tables(reduced: Reduced, model: str) -> Iterator[pd.DataFrame]:
    """An empty part, and some with a row per position of each prompt whose positions were captured.

    `mean_attention` over heads, beside `uniform_attention`; of the heads, the share for which the position is a sink
    (`sink_heads`: mean attention of EPSILON or more) and for which it receives most (`strongest_heads`), both empty
    where it is no candidate.
    """

    def rows(tokens: list[str], found: dict[str, np.ndarray]) -> dict[str, object]:
        n, heads = len(tokens), np.prod(reduced.shape)
        known = np.where(np.arange(n) < candidates(n), 1 / heads, np.nan)
        return {
            "position": range(n),
            "token": _printed(tokens),
            "kind": _kinds(tokens),
            "mean_attention": found["mean_received"],
            "uniform_attention": uniform_attention(n),
            "sink_heads": found["sink_heads"] * known,
            "strongest_heads": found["strongest_heads"] * known,
        }

    yield pd.DataFrame(columns=_ABOUT + _OF_POSITION + _OF_ALL_HEADS)  # so that an empty table has a header
    yield from _with_positions(reduced, model, ("mean_received", "sink_heads", "strongest_heads"), rows)


def sink_position_tables(reduced: Reduced, model: str) -> Iterator[pd.DataFrame]:
    """An empty part, and some with a row per head of each prompt whose positions were captured: the candidate that
    receives most, and its `mean_attention` beside that of the first token (`first_attention`)."""

    def rows(tokens: list[str], found: dict[str, np.ndarray]) -> dict[str, object]:
        layers, heads = reduced.shape
        kinds, printed, strongest = _kinds(tokens), _printed(tokens), found["strongest"].ravel()
        return {
            "layer": np.repeat(reduced.layers, heads),
            "head": np.tile(np.arange(heads), layers),
            "position": strongest,
            "token": [printed[position] for position in strongest],
            "kind": [kinds[position] for position in strongest],
            "mean_attention": found["strongest_mass"].ravel(),
            "first_attention": found["first_mass"].ravel(),
        }

    # So that an empty table has a header.
    yield pd.DataFrame(columns=[*_ABOUT, "layer", "head", *_OF_POSITION, "first_attention"])
    of_each = reduced.shape[0] * reduced.shape[1] if len(reduced.prompts) else 1
    yield from _with_positions(reduced, model, ("strongest", "strongest_mass", "first_mass"), rows, of_each)


def _with_positions(
    reduced: Reduced,
    model: str,
    names: Sequence[str],
    rows: Callable[[list[str], dict[str, np.ndarray]], dict[str, object]],
    of_each: int = 1,
) -> Iterator[pd.DataFrame]:
    """In parts of bounded size, the `rows` of each prompt whose positions were captured, made of its tokens and of what
    is stored of it under `names`; `of_each`: rows of a prompt, where all have as many."""
    for block in reduced.blocks(reduced.reaching(None), of_each):
        block = block[reduced.rows("has_positions", block)]
        if not len(block):
            continue
        stored = {name: reduced.of_each(name, block) for name in ("token", *names)}
        parts = []
        for at, place in enumerate(block):
            about = [model, reduced.sets[place], reduced.prompts[place], reduced.n_tokens[place]]
            tokens = [token.decode() for token in stored["token"][at].tolist()]
            of_prompt = rows(tokens, {name: stored[name][at] for name in names})
            parts.append(pd.DataFrame(dict(zip(_ABOUT, about, strict=True)) | of_prompt))
        yield pd.concat(parts, ignore_index=True)


def _printed(tokens: list[str]) -> list[str]:
    """Tokens on one line each: line breaks and what else is not seen as Python writes them."""
    return [repr(token)[1:-1] for token in tokens]


def _kinds(tokens: list[str]) -> list[str]:
    return [kind_of(position, token) for position, token in enumerate(tokens)]


def strongest_receivers(positions: Iterable[pd.DataFrame], min_tokens: int, count: int) -> pd.DataFrame:
    """The `count` candidates that receive most of each prompt of `min_tokens` or more, from the parts of a table of
    positions."""
    known = (part[part["n_tokens"] >= min_tokens].dropna(subset="sink_heads") for part in positions)
    ordered = [part.sort_values("mean_attention", ascending=False, kind="stable") for part in known]
    strongest = [part.groupby("prompt", sort=False).head(count) for part in ordered]
    return pd.concat(strongest) if strongest else pd.DataFrame()


def sink_shares(sink_positions: Iterable[pd.DataFrame], min_tokens: int) -> pd.DataFrame:
    """Per layer the share of cases (head, and prompt of `min_tokens` or more) with a sink at each of KINDS, from the
    parts of a table of sink positions."""
    counts = pd.DataFrame(columns=[*KINDS, "none"])
    for part in sink_positions:
        long = part[part["n_tokens"] >= min_tokens]
        kind = long["kind"].where(long["mean_attention"] >= EPSILON, "none")
        added = pd.crosstab(long["layer"], kind).reindex(columns=[*KINDS, "none"], fill_value=0)
        counts = counts.add(added, fill_value=0)
    return counts[list(KINDS)].div(counts.sum(axis=1), axis=0)
