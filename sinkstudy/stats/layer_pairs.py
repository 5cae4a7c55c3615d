"""Layer by layer: if a head is a sink in layer a, is the head with the same index a sink in layer b?"""

import numpy as np
import pandas as pd

from sinkstudy.stats.correlation import contingency
from sinkstudy.stats.prefixes import Prefixes
from sinkstudy.stats.resampling import Resampling, ratio_intervals


class LayerPairs:
    """Counts per prompt of the heads that are sinks in both of two layers, at whole prompts and at some lengths."""

    def __init__(self, thresholds: list[float], lengths: list[int]):
        self._thresholds = thresholds
        # By length (None: whole prompts), arrays (prompt, threshold, pair) with pairs in the order of `triu_indices`.
        # Their memory grows with the number of prompts, so each pair is kept once, in the smallest integer type.
        self._both: dict[int | None, list[np.ndarray]] = {None: [], **{n: [] for n in lengths}}
        self._order: dict[int | None, list[int]] = {n: [] for n in self._both}  # of each prompt in the study

    def add(self, order: np.ndarray, prefixes: Prefixes) -> None:
        """Captures of one length, with their positions in the study."""
        self._layers, self._heads = prefixes.members[0].layers, prefixes.scores.shape[2]
        a, b = np.triu_indices(len(self._layers))
        smallest = np.min_scalar_type(self._heads)
        for n, kept in self._both.items():
            if n is None or n <= prefixes.n_tokens:
                at = prefixes.at(n or prefixes.n_tokens)[:, None]  # (prompt, 1, layer, head)
                is_sink = (at >= np.array(self._thresholds)[:, None, None]).astype(np.float32)
                self._order[n] += order.tolist()
                kept.append((is_sink @ is_sink.swapaxes(2, 3))[..., a, b].astype(smallest))

    def table(self, model: str, resampling: Resampling) -> pd.DataFrame:
        """A row per length (empty: whole prompts), threshold and ordered pair of different layers, over all prompts."""
        parts = []
        for n, kept in ((n, kept) for n, kept in self._both.items() if kept):
            both = np.concatenate(kept)[np.argsort(self._order[n])]  # as draws depend on the order
            parts += [self._rows(both[:, i], n, threshold, resampling) for i, threshold in enumerate(self._thresholds)]
        table = pd.concat(parts, ignore_index=True)
        table.insert(0, "model", model)
        return table.astype({"n_tokens": "Int64"})

    def _rows(self, both: np.ndarray, n: int | None, threshold: float, resampling: Resampling) -> pd.DataFrame:
        prompts, count = len(both), len(self._layers)
        # Index of two layers along the pairs of `both` (prompt, pair); a layer paired with itself counts its sinks.
        index = np.zeros((count, count), int)
        index[np.triu_indices(count)] = np.arange(both.shape[1])
        index = np.maximum(index, index.T)
        a, b = np.nonzero(~np.eye(count, dtype=bool))
        given, later, shared = (both[:, pair] for pair in (index[a, a], index[b, b], index[a, b]))  # (prompt, pair)
        shares = contingency(given.sum(0), shared.sum(0), later.sum(0), np.full(len(a), prompts * self._heads))
        low, high = ratio_intervals(shared, given, resampling)
        return pd.DataFrame(
            {
                "n_tokens": pd.array([n] * len(a), dtype="Int64"),
                "threshold": threshold,
                "layer_a": self._layers[a],
                "layer_b": self._layers[b],
                "prompts": prompts,
                "sinks_a": given.sum(0, dtype=int),
                "p_b_given_a": shares["p_later_given_first"],
                "p_b": shares["p_later"],
                "lift": shares["lift"],
                "phi": shares["phi"],
                "ci_low": low,
                "ci_high": high,
            }
        )
