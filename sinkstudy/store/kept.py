"""What `capture.keep: lengths` keeps of a prompt in place of its queries: running means at a grid of prefix lengths.

Attention to the first k tokens does not depend on what comes after, so all that follows from the masses of every query
follows at length k from their means over the first k. The grid has the lengths that a study names, those between them
on a logarithmic scale, and the prompt's own. Of every query, a few numbers over all heads are kept for the curves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

GRID = np.unique(np.geomspace(2, 1 << 16, 80).round().astype(int))
# Scores without the first query or without the first four are differences of means, and definitions have windows.
_ALWAYS = (1, 2, 4, 128)
EPSILON = 0.3  # a position that receives this mean attention is a sink (Gu et al., arXiv 2410.10781)
LATER_QUERIES, LATER_SHARE = 16, 1 / 4


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


@dataclass(frozen=True)
class Received:
    """The attention that positions receive from later queries, as far as tables and pages need it.

    By position: `mean_received` over heads; of the heads, those of which it is a sink (`sink_heads`) and those of which
    it is the candidate that receives most (`strongest_heads`), both 0 where it is no candidate. By head: that candidate
    (`strongest`), what it receives (`strongest_mass`) and what the first token does (`first_mass`).
    """

    mean_received: Annotated[np.ndarray, np.float64, "key"]
    sink_heads: Annotated[np.ndarray, np.int32, "key"]
    strongest_heads: Annotated[np.ndarray, np.int32, "key"]
    strongest: Annotated[np.ndarray, np.int32, "layer head"]
    strongest_mass: Annotated[np.ndarray, np.float32, "layer head"]
    first_mass: Annotated[np.ndarray, np.float32, "layer head"]


@dataclass(frozen=True)
class Keep:
    """What to keep: the lengths that a study names, and the thresholds above which queries are counted."""

    lengths: Sequence[int]
    thresholds: Sequence[float]

    def at_lengths(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays of a prompt, with what grows with its queries replaced by `Kept` and `Received`."""
        rest = dict(arrays)
        masses, row_sum = rest.pop("key_mass"), rest.pop("row_sum", None)
        rest |= vars(kept(masses, row_sum, self.lengths, self.thresholds))
        if (positions := rest.pop("position_mass", None)) is not None:
            rest |= vars(received(positions))
        return rest


def candidates(n: int) -> int:
    """How many of the first positions of `n` tokens have enough later queries to be called sinks.

    A mean over few of them is that of a token's neighbours: LATER_QUERIES at least and LATER_SHARE of the prompt have
    to come after a position, or half of a short prompt.
    """
    return n - min(max(LATER_QUERIES, int(LATER_SHARE * n)), n // 2)


def received(position_mass: np.ndarray) -> Received:
    """From the mean attention that every position receives, (layer, head, key)."""
    n = position_mass.shape[-1]
    eligible = position_mass[..., : candidates(n)]
    strongest = eligible.argmax(-1)
    sinks = (eligible >= EPSILON).sum((0, 1))
    return Received(
        mean_received=position_mass.mean((0, 1), dtype=float),
        sink_heads=np.pad(sinks, (0, n - len(sinks))),
        strongest_heads=np.bincount(strongest.ravel(), minlength=n),
        strongest=strongest,
        strongest_mass=eligible.max(-1),
        first_mass=eligible[..., 0],
    )


def prefix_scores(sink_mass: np.ndarray, row_sum: np.ndarray | None = None) -> np.ndarray:
    """Sink score at every prefix length, (..., layer, head, query) float64; index k - 1 is length k.

    The score is sum_i A[i, 0] / sum_ij A[i, j] (the original study's; Gu et al., arXiv 2410.10781, use the same
    quantity at threshold 0.3). `row_sum` None means that rows sum to 1.
    """
    total = np.arange(1, sink_mass.shape[-1] + 1) if row_sum is None else np.cumsum(row_sum, -1, dtype=float)
    return np.cumsum(sink_mass, axis=-1, dtype=float) / total


def sink_counts(is_sink: np.ndarray) -> np.ndarray:
    """(..., layer, head, query) bool to (..., query, 3): sinks, first-layer sinks, later sinks at their heads."""
    first, later = is_sink[..., :1, :, :], is_sink[..., 1:, :, :]
    # 16 bits hold the number of heads of any model. With many prompts, these counts are most of the memory.
    counts = [is_sink.sum((-3, -2)), first.sum((-3, -2)), (first & later).sum((-3, -2))]
    return np.stack(counts, axis=-1).astype(np.uint16)


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
