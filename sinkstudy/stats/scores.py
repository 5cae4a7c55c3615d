"""Sink scores from the attention mass on the first token, at whole prompts; and what other statistics are made of."""

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from sinkstudy.measures.captured import Capture
from sinkstudy.stats.prefixes import Prefixes
from sinkstudy.stats.reduced import Reduced
from sinkstudy.stats.resampling import ratio

POSITIONS = 4  # the first key classes of a capture are the mass on positions 0 to 3
_BATCH_BYTES = 1 << 23


def null_score(n: int | np.ndarray) -> np.ndarray:
    """Sink score of uniform causal attention over `n` tokens: H_n / n, with H_n the n-th harmonic number."""
    lengths = np.asarray(n)
    harmonic = np.cumsum(1.0 / np.arange(1, lengths.max(initial=1) + 1))
    return harmonic[lengths - 1] / lengths


def excess_score(score: np.ndarray, null: np.ndarray) -> np.ndarray:
    """(score - null) / (1 - null): 0 for uniform attention, 1 for a perfect sink, undefined (NaN) for one token."""
    return ratio(np.asarray(score, float) - null, 1 - np.asarray(null, float))


def tail_score(prefixes: Prefixes, n: int) -> np.ndarray:
    """Mean mass over the first `n` queries but the first of all, (prompt, layer, head); NaN for a single token."""
    if n == 1:
        return np.full(prefixes.at(n).shape, np.nan)
    return prefixes.mean("sink_mass", n, first=1)


def strongest_position(prefixes: Prefixes, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of the first four positions draws most mass, and how much, (prompt, layer, head) each.

    Averaged over those of the first `n` queries that come after all four, so that no position has a head start; NaN
    where there is no such query.
    """
    if n <= POSITIONS:
        undefined = np.full(prefixes.at(n).shape, np.nan)
        return undefined, undefined
    mean = prefixes.mean("key_mass", n, first=POSITIONS)[..., :POSITIONS]
    return mean.argmax(-1), mean.max(-1)


def in_batches(captures: Iterable[Capture]) -> Iterator[list[Capture]]:
    """Captures in their order, in lists of a bounded amount of memory."""
    batch, held = [], 0
    for capture in captures:
        batch.append(capture)
        held += capture.nbytes
        if held >= _BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def scored(captures: Iterable[Capture]) -> Iterator[tuple[np.ndarray, Prefixes]]:
    """Captures of one length at a time, with their positions among all; one batch is in memory."""
    done = 0
    for batch in in_batches(captures):
        lengths = np.array([capture.n_tokens for capture in batch])
        for n in np.unique(lengths):
            places = np.flatnonzero(lengths == n)
            yield done + places, Prefixes([batch[place] for place in places])
        done += len(batch)


def prompt_columns(
    reduced: Reduced, model: str, block: np.ndarray, rows: int | np.ndarray
) -> dict[str, pd.Categorical]:
    """The first columns of a table with so many `rows` of each prompt of a block, as a code per row, not a string."""
    sets, prompts = (pd.Categorical(one[block]).repeat(rows) for one in (reduced.sets, reduced.prompts))
    return {"model": pd.Categorical([model]).repeat(len(prompts)), "set": sets, "prompt": prompts}


def head_columns(reduced: Reduced, prompts: int = 1) -> dict[str, np.ndarray]:
    """The columns layer and head of a table with a row per head of each of so many prompts."""
    layers, heads = reduced.shape
    return {
        "layer": np.tile(reduced.layers.repeat(heads), prompts),
        "head": np.tile(np.arange(heads), layers * prompts),
    }


def score_tables(reduced: Reduced, model: str, threshold: float) -> Iterator[pd.DataFrame]:
    """One row per prompt, layer and head, at the prompt's whole length, in parts of bounded size.

    Beyond the scores: `text_tokens`, which is more than `n_tokens` where the prompt was cut to the model's context; the
    strongest of the first four positions with its score; and the norm of the head's output relative to the residual
    stream, near zero for a head that does nothing.
    """
    each = np.prod(reduced.shape)
    for block in reduced.blocks(reduced.reaching(None), each):
        n_tokens, score = reduced.rows("n_tokens", block), reduced.rows("sink_score", block)  # (prompt, layer, head)
        null = null_score(n_tokens)[:, None, None]
        measured = ("strongest_position", "position_score", "output_norm")
        yield pd.DataFrame(
            prompt_columns(reduced, model, block, each)
            | {"n_tokens": n_tokens.repeat(each)}
            | head_columns(reduced, len(block))
            | {
                "sink_score": score.ravel(),
                "null_score": null.repeat(each),
                "excess_score": excess_score(score, null).ravel(),
                "tail_score": reduced.rows("tail_score", block).ravel(),
                "is_sink": (score >= threshold).ravel(),
                **{name: reduced.rows(name, block).ravel() for name in measured},
                "text_tokens": reduced.rows("text_tokens", block).repeat(each),
            }
        )


def head_table(scores: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Averages over prompts per layer and head, for each set and for `all` prompts, from the parts of a score table."""
    by, columns = ["model", "set", "layer", "head"], list(_AVERAGES.values())
    sums = pd.DataFrame()  # per set and head; (column, sum or count)
    for part in scores:
        added = part.groupby(by, sort=False)[columns].agg(["sum", "count"])
        sums = pd.concat([sums, added]).groupby(by, sort=False).sum()
    every = sums.rename(index=lambda _: "all", level="set").groupby(by, sort=False).sum()
    sums = pd.concat([sums, every])
    means = {name: sums[column, "sum"] / sums[column, "count"] for name, column in _AVERAGES.items()}
    return pd.DataFrame({"prompts": sums["n_tokens", "count"]} | means).reset_index()


_AVERAGES = {
    "mean_tokens": "n_tokens",
    "mean_sink_score": "sink_score",
    "mean_null_score": "null_score",
    "mean_excess_score": "excess_score",
    "mean_tail_score": "tail_score",
    "sink_share": "is_sink",
    "mean_output_norm": "output_norm",
}
