"""Where the sinks of a prompt are, at the first token or not: the attention that every position receives.

A position's mean attention is over the queries after it. But for the query at the position itself, which is left out
here, that is the importance score of Gu et al. (arXiv 2410.10781), who call a position a sink where it is above 0.3.
"""

import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from sinkstudy.measures.captured import Capture
from sinkstudy.measures.received import EPSILON, Received, candidates, received
from sinkstudy.stats.reduced import Reduced
from sinkstudy.stats.scores import head_columns, prompt_columns

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
    yield pd.DataFrame(columns=_ABOUT + _OF_POSITION + _OF_ALL_HEADS)  # so that an empty table has a header
    for block in _captured(reduced):
        ends = reduced.n_tokens[block]
        is_candidate = np.concatenate([np.arange(n) < candidates(n) for n in ends])
        known = np.where(is_candidate, 1 / np.prod(reduced.shape), np.nan)
        yield pd.DataFrame(
            prompt_columns(reduced, model, block, ends)
            | {"n_tokens": ends.repeat(ends)}
            | _tokens(reduced, block)
            | {
                "mean_attention": reduced.rows("mean_received", block),
                "uniform_attention": np.concatenate([uniform_attention(n) for n in ends]),
                "sink_heads": reduced.rows("sink_heads", block) * known,
                "strongest_heads": reduced.rows("strongest_heads", block) * known,
            }
        )


def sink_position_tables(reduced: Reduced, model: str) -> Iterator[pd.DataFrame]:
    """An empty part, and some with a row per head of each prompt whose positions were captured: the candidate that
    receives most, and its `mean_attention` beside that of the first token (`first_attention`)."""
    # So that an empty table has a header.
    yield pd.DataFrame(columns=[*_ABOUT, "layer", "head", *_OF_POSITION, "first_attention"])
    each = np.prod(reduced.shape)
    for block in _captured(reduced, each):
        ends = reduced.n_tokens[block]
        strongest = reduced.rows("strongest", block)  # (prompt, layer, head)
        along = ((np.cumsum(ends) - ends)[:, None, None] + strongest).ravel()  # along the tokens of all prompts
        yield pd.DataFrame(
            prompt_columns(reduced, model, block, each)
            | {"n_tokens": ends.repeat(each)}
            | head_columns(reduced, len(block))
            | {name: np.array(values)[along] for name, values in _tokens(reduced, block).items()}
            | {
                "position": strongest.ravel(),
                "mean_attention": reduced.rows("strongest_mass", block).ravel(),
                "first_attention": reduced.rows("first_mass", block).ravel(),
            }
        )


def _captured(reduced: Reduced, rows: int = 1) -> Iterator[np.ndarray]:
    """Blocks of the prompts whose positions were captured, for tables with so many rows of a prompt."""
    for block in reduced.blocks(reduced.reaching(None), rows):
        block = block[reduced.rows("has_positions", block)]
        if len(block):
            yield block


def _tokens(reduced: Reduced, block: np.ndarray) -> dict[str, list]:
    """The columns position, token and kind, a row per token. Tokens are on one line each: line breaks and what else is
    not seen as Python writes them."""
    tokens = [token.decode() for token in reduced.rows("token", block).tolist()]
    positions = [position for n in reduced.n_tokens[block] for position in range(n)]
    return {
        "position": positions,
        "token": [repr(token)[1:-1] for token in tokens],
        "kind": [kind_of(position, token) for position, token in zip(positions, tokens, strict=True)],
    }


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
