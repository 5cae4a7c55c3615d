"""One word, many measures: the share of sinks under each published definition, on the same captures.

Definitions differ in what is called a sink (a head by its mean attention to the first token, or every query of it), in
whether the first query counts, which can only attend to itself, in which queries are averaged, and in whether the
threshold itself counts. A figure means nothing beside another before these agree.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from sinkstudy.stats.prefixes import Prefixes
from sinkstudy.stats.reduced import Reduced
from sinkstudy.stats.resampling import Resampling, ratio, ratio_intervals_of, sums


@dataclass(frozen=True)
class Definition:
    """`unit`: what is a sink, a `head` or a `query` of it. `first_query`: whether the first query counts. `queries`: so
    many of the first queries count, None for all. `strict`: whether a sink has to exceed the threshold."""

    unit: str
    first_query: bool
    queries: int | None
    strict: bool

    def share(self, prefixes: Prefixes, n: int, threshold: float) -> np.ndarray:
        """Share of sinks over the first `n` tokens, (prompt,); NaN where no query counts."""
        n, first = min(n, self.queries or n), 0 if self.first_query else 1
        if n == first:
            return np.full(len(prefixes.members), np.nan)
        if self.unit == "query":
            heads = prefixes.scores[0, ..., 0].size
            above = prefixes.queries_above(threshold, n) - (prefixes.queries_above(threshold, first) if first else 0)
            return above / (heads * (n - first))
        value = prefixes.at(n) if self.first_query else prefixes.mean("sink_share", n, first=1)
        above = value > threshold if self.strict else value >= threshold
        return above.mean((1, 2))


DEFINITIONS = {
    "study": Definition("head", first_query=True, queries=None, strict=False),
    "gu": Definition("head", first_query=True, queries=None, strict=True),
    "without_first_query": Definition("head", first_query=False, queries=None, strict=True),
    "first_2_queries": Definition("head", first_query=True, queries=2, strict=False),
    "first_128_queries": Definition("head", first_query=True, queries=128, strict=False),
    "per_query": Definition("query", first_query=True, queries=None, strict=True),
    "per_query_without_first": Definition("query", first_query=False, queries=None, strict=True),
}


def shares(prefixes: Prefixes, n: int, thresholds: Sequence[float]) -> np.ndarray:
    """(prompt, definition, threshold); NaN where the prompt is shorter, or no query counts."""
    if n > prefixes.n_tokens:
        return np.full((len(prefixes.members), len(DEFINITIONS), len(thresholds)), np.nan)
    found = [[one.share(prefixes, n, threshold) for threshold in thresholds] for one in DEFINITIONS.values()]
    return np.moveaxis(found, -1, 0)


def definition_table(reduced: Reduced, model: str, lengths: Sequence[int], resampling: Resampling) -> pd.DataFrame:
    """Rows per set (and `all`), definition, threshold and length: the mean over prompts that reach it, with its
    interval."""
    lengths = [n for n in lengths if n > 1]
    cells = pd.DataFrame(
        {
            "model": model,
            "set": "all",
            "definition": name,
            "unit": one.unit,
            "first_query": "counted" if one.first_query else "left out",
            "queries": f"first {one.queries}" if one.queries else "all",
            "comparison": ">" if one.strict else ">=",
        }
        for name, one in DEFINITIONS.items()
    )
    for name, values in {"threshold": reduced.thresholds, "n_tokens": lengths}.items():
        cells = cells.merge(pd.DataFrame({name: values}), how="cross")
    parts = []
    for name, members in [*reduced.members(), ("all", reduced.reaching(None))]:
        blocks = partial(_blocks, reduced, members, lengths)
        total, prompts = sums(blocks)
        low, high = ratio_intervals_of(blocks, resampling)
        columns = {"prompts": prompts.astype(int), "share": ratio(total, prompts), "share_low": low, "share_high": high}
        parts.append(pd.concat([cells, pd.DataFrame(columns)], axis=1).assign(set=name)[prompts > 0])
    return pd.concat(parts, ignore_index=True)


def _blocks(reduced: Reduced, members: np.ndarray, lengths: Sequence[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Shares of sinks, and whether they are defined, (prompt, cell) each."""
    for block in reduced.blocks(members):
        of_length = [reduced.rows(f"shares/{n}", block) for n in lengths]
        flat = np.stack(of_length, axis=-1).reshape(len(block), -1)
        yield np.nan_to_num(flat), ~np.isnan(flat)
