"""Layer by layer: if a head is a sink in layer a, is the head with the same index a sink in layer b?"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from sinkstudy.stats.correlation import contingency
from sinkstudy.stats.resampling import Resampling, ratio_intervals_of, sums
from sinkstudy.store.reduced import Reduced


def layer_pair_table(reduced: Reduced, model: str, lengths: Sequence[int], resampling: Resampling) -> pd.DataFrame:
    """A row per length (empty: whole prompts), threshold and ordered pair of different layers, over all prompts."""
    parts = [
        _rows(reduced, model, n, i, resampling)
        for n in (None, *lengths)
        if len(reduced.reaching(n))
        for i in range(len(reduced.thresholds))
    ]
    return pd.concat(parts, ignore_index=True)


def _rows(reduced: Reduced, model: str, n: int | None, i: int, resampling: Resampling) -> pd.DataFrame:
    (count, heads), members = reduced.shape, reduced.reaching(n)
    a, b = np.nonzero(~np.eye(count, dtype=bool))

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Heads that are sinks in both layers of a pair, and in its first, (prompt, pair) each."""
        for block in reduced.blocks(members):
            is_sink = reduced.is_sink(block, n)[:, i].astype(np.float32)  # (prompt, layer, head)
            both = is_sink @ is_sink.swapaxes(1, 2)  # a layer paired with itself counts its sinks
            yield both[:, a, b], both[:, a, a]

    shared, given = sums(blocks)
    later = given.reshape(count, -1)[:, :1].ravel()[b]  # of the second layer, which is the first of other pairs
    shares = contingency(given, shared, later, len(members) * heads)
    low, high = ratio_intervals_of(blocks, resampling)
    return pd.DataFrame(
        {
            "model": model,
            "n_tokens": pd.array([n] * len(a), dtype="Int64"),
            "threshold": reduced.thresholds[i],
            "layer_a": reduced.layers[a],
            "layer_b": reduced.layers[b],
            "prompts": len(members),
            "sinks_a": given.astype(int),
            "p_b_given_a": shares["p_later_given_first"],
            "p_b": shares["p_later"],
            "lift": shares["lift"],
            "phi": shares["phi"],
            "ci_low": low,
            "ci_high": high,
        }
    )
