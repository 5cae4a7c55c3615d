"""What `capture.keep: lengths` keeps of a prompt in place of its queries: running means at a grid of prefix lengths.

Attention to the first k tokens does not depend on what comes after, so all that follows from the masses of every query
follows at length k from their means over the first k. The grid has the lengths that a study names, those between them
on a logarithmic scale, and the prompt's own. Of every query, a few numbers over all heads are kept for the curves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from sinkstudy.measures.scores import prefix_scores, sink_counts

GRID = np.unique(np.geomspace(2, 1 << 16, 80).round().astype(int))
# Scores without the first query or without the first four are differences of means, and definitions have windows.
_ALWAYS = (1, 2, 4, 128)


@dataclass(frozen=True)
class Kept:
    """Means over the first `lengths` queries.

    `mean_sink_share`: of the mass on the first token over the sum of its row; that and `mean_row_sum` only where rows
    sum to less than 1. `queries_above`: how many of the first queries, of all heads together, have a share above each
    of `thresholds`. Of every query: `mean_score`, over heads, and `sink_counts` at each threshold, of its prefix.
    """

    lengths: Annotated[np.ndarray, np.int32, "length"]
    thresholds: Annotated[np.ndarray, np.float64, "threshold"]
    mean_sink_mass: Annotated[np.ndarray, np.float64, "layer head length"]
    mean_key_mass: Annotated[np.ndarray, np.float32, "layer head length key_class"]
    queries_above: Annotated[np.ndarray, np.int64, "threshold length"]
    mean_score: Annotated[np.ndarray, np.float64, "query"]
    sink_counts: Annotated[np.ndarray, np.uint16, "threshold query count"]
    mean_row_sum: Annotated[np.ndarray | None, np.float64, "layer head length"] = None
    mean_sink_share: Annotated[np.ndarray | None, np.float64, "layer head length"] = None


def kept(key_mass: np.ndarray, row_sum: np.ndarray | None, lengths: Sequence[int], thresholds: Sequence[float]) -> Kept:
    """From the masses of every query, (layer, head, query, key_class) and (layer, head, query); see `Kept`."""
    n = key_mass.shape[2]
    at = np.unique([length for length in (*_ALWAYS, *GRID, *lengths, n) if length <= n])

    def means(values: np.ndarray) -> np.ndarray:
        sums = np.cumsum(values, 2, dtype=float)[:, :, at - 1]
        return sums / at.reshape(-1, *[1] * (values.ndim - 3))

    scores = prefix_scores(key_mass[..., 0], row_sum)
    share = key_mass[..., 0].astype(float)
    share = share if row_sum is None else share / row_sum
    above = [np.cumsum((share > threshold).sum((0, 1)))[at - 1] for threshold in thresholds]
    return Kept(
        lengths=at,
        thresholds=np.array(thresholds),
        mean_sink_mass=means(key_mass[..., 0]),
        mean_key_mass=means(key_mass),
        mean_score=scores.mean((0, 1)),
        sink_counts=np.stack([sink_counts(scores >= threshold) for threshold in thresholds]),
        queries_above=np.array(above).reshape(len(thresholds), len(at)),
        mean_row_sum=None if row_sum is None else means(row_sum),
        mean_sink_share=None if row_sum is None else means(share),
    )
