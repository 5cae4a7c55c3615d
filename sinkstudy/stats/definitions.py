"""One word, many measures: the share of sinks under each published definition, on the same captures.

Definitions differ in what is called a sink (a head by its mean attention to the first token, or every query of it), in
whether the first query counts, which can only attend to itself, in which queries are averaged, and in whether the
threshold itself counts. A figure means nothing beside another before these agree.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from sinkstudy.stats.prefixes import Prefixes
from sinkstudy.stats.resampling import Resampling, ratio_intervals


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


class DefinitionShares:
    """Shares per prompt, definition, threshold and length; prompts count at the lengths that they reach."""

    def __init__(self, thresholds: list[float], lengths: list[int]):
        self._thresholds, self._lengths = thresholds, [n for n in lengths if n > 1]
        self._order: list[int] = []
        self._sets: list[str] = []
        self._shares: list[np.ndarray] = []  # each (definition, threshold, length), NaN where the prompt is shorter

    def add(self, order: np.ndarray, prefixes: Prefixes) -> None:
        """Captures of one length, with their positions in the study."""
        shares = np.full((len(order), len(DEFINITIONS), len(self._thresholds), len(self._lengths)), np.nan)
        for place, n in enumerate(self._lengths):
            if n <= prefixes.n_tokens:
                for d, definition in enumerate(DEFINITIONS.values()):
                    for t, threshold in enumerate(self._thresholds):
                        shares[:, d, t, place] = definition.share(prefixes, n, threshold)
        self._order += order.tolist()
        self._sets += [capture.set for capture in prefixes.members]
        self._shares += list(shares)

    def table(self, model: str, resampling: Resampling) -> pd.DataFrame:
        """Rows per set (and `all`), definition, threshold and length: the mean over prompts with its interval."""
        in_order = np.argsort(self._order)
        shares, sets = np.stack(self._shares)[in_order], np.array(self._sets)[in_order]
        named = [(name, shares[sets == name]) for name in dict.fromkeys(sets.tolist())]
        parts = [self._rows(some, resampling).assign(set=name) for name, some in [*named, ("all", shares)]]
        table = pd.concat(parts, ignore_index=True)
        table.insert(0, "model", model)
        table.insert(1, "set", table.pop("set"))
        return table

    def _rows(self, shares: np.ndarray, resampling: Resampling) -> pd.DataFrame:
        flat = shares.reshape(len(shares), -1)
        counted = ~np.isnan(flat)
        total = np.where(counted, flat, 0.0)
        low, high = ratio_intervals(total, counted.astype(float), resampling)
        prompts = counted.sum(0)
        index = pd.MultiIndex.from_product(
            [DEFINITIONS, self._thresholds, self._lengths], names=["definition", "threshold", "n_tokens"]
        )
        rows = index.to_frame(index=False)
        about = [DEFINITIONS[name] for name in rows["definition"]]
        rows.insert(1, "unit", [one.unit for one in about])
        rows.insert(2, "first_query", ["counted" if one.first_query else "left out" for one in about])
        rows.insert(3, "queries", [f"first {one.queries}" if one.queries else "all" for one in about])
        rows.insert(4, "comparison", [">" if one.strict else ">=" for one in about])
        rows["prompts"] = prompts
        rows["share"] = np.divide(total.sum(0), prompts, out=np.full(len(rows), np.nan), where=prompts > 0)
        rows["share_low"], rows["share_high"] = low, high
        return rows[rows["prompts"] > 0]
