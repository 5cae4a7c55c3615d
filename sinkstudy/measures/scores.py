"""The sink score at every prefix length, and how many heads are sinks."""

import numpy as np


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
