"""Sink scores from the attention mass on the first token.

Everything follows from `m` (layer, head, query): causal attention over the first k tokens does not depend on what
comes after, so the score at every prefix length is a running mean of the same array.
"""

import numpy as np
import pandas as pd

from sinkstudy.store import Capture

POSITIONS = 4  # the first key classes of a capture are the mass on positions 0 to 3


def null_score(n: int | np.ndarray) -> np.ndarray:
    """Sink score of uniform causal attention over `n` tokens: H_n / n, with H_n the n-th harmonic number."""
    lengths = np.asarray(n)
    harmonic = np.cumsum(1.0 / np.arange(1, lengths.max(initial=1) + 1))
    return harmonic[lengths - 1] / lengths


def excess_score(score: np.ndarray, null: np.ndarray) -> np.ndarray:
    """(score - null) / (1 - null): 0 for uniform attention, 1 for a perfect sink, undefined (NaN) for one token."""
    score, null = np.broadcast_arrays(np.asarray(score, float), np.asarray(null, float))
    return np.divide(score - null, 1 - null, out=np.full(score.shape, np.nan), where=null < 1)


def prefix_scores(sink_mass: np.ndarray, row_sum: np.ndarray | None = None) -> np.ndarray:
    """Sink score at every prefix length, (layer, head, query) float64; index k - 1 is length k.

    The score is sum_i A[i, 0] / sum_ij A[i, j] (the original study's; Gu et al., arXiv 2410.10781, use the same
    quantity at threshold 0.3). `row_sum` None means that rows sum to 1.
    """
    total = np.arange(1, sink_mass.shape[-1] + 1) if row_sum is None else np.cumsum(row_sum, -1, dtype=float)
    return np.cumsum(sink_mass, axis=-1, dtype=float) / total


def tail_score(sink_mass: np.ndarray) -> np.ndarray:
    """Mean mass over the queries after the first, (layer, head); NaN for a single token."""
    if sink_mass.shape[-1] == 1:
        return np.full(sink_mass.shape[:-1], np.nan)
    return sink_mass[..., 1:].mean(-1, dtype=float)


def strongest_position(key_mass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of the first four positions draws most mass, and how much, (layer, head) each.

    Averaged over the queries that come after all four, so that no position has a head start; NaN where there is no
    such query. `key_mass` (layer, head, query, key_class).
    """
    if key_mass.shape[2] <= POSITIONS:
        undefined = np.full(key_mass.shape[:2], np.nan)
        return undefined, undefined
    mean = key_mass[:, :, POSITIONS:, :POSITIONS].mean(2, dtype=float)  # (layer, head, position)
    return mean.argmax(-1), mean.max(-1)


def score_table(capture: Capture, model: str, threshold: float) -> pd.DataFrame:
    """One row per layer and head, at the prompt's whole length.

    Beyond the scores: the strongest of the first four positions with its score, and the norm of the head's output
    relative to the residual stream, near zero for a head that does nothing.
    """
    score = prefix_scores(capture.sink_mass, capture.row_sum)[..., -1]  # (layer, head)
    null = null_score(capture.n_tokens)
    layers, heads = score.shape
    position, position_score = strongest_position(capture.key_mass)
    return pd.DataFrame(
        {
            "model": model,
            "set": capture.set,
            "prompt": capture.prompt,
            "n_tokens": capture.n_tokens,
            "layer": np.repeat(capture.layers, heads),
            "head": np.tile(np.arange(heads), layers),
            "sink_score": score.ravel(),
            "null_score": null,
            "excess_score": excess_score(score, null).ravel(),
            "tail_score": tail_score(capture.sink_mass).ravel(),
            "is_sink": (score >= threshold).ravel(),
            "strongest_position": position.ravel(),
            "position_score": position_score.ravel(),
            "output_norm": capture.output_norm.ravel(),
        }
    )


def length_table(capture: Capture, model: str, thresholds: list[float]) -> pd.DataFrame:
    """One row per prefix length and threshold: the fraction of all heads that are sinks, and mean scores."""
    score = prefix_scores(capture.sink_mass, capture.row_sum)  # (layer, head, query)
    lengths = np.arange(1, capture.n_tokens + 1)
    null = null_score(lengths)
    times = len(thresholds)
    return pd.DataFrame(
        {
            "model": model,
            "set": capture.set,
            "prompt": capture.prompt,
            "n_tokens": np.tile(lengths, times),
            "threshold": np.repeat(thresholds, capture.n_tokens),
            "sink_fraction": np.concatenate([(score >= t).mean((0, 1)) for t in thresholds]),
            "mean_score": np.tile(score.mean((0, 1)), times),
            "null_score": np.tile(null, times),
            "mean_excess": np.tile(excess_score(score, null).mean((0, 1)), times),
        }
    )


def head_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Averages over prompts per layer and head, for each set and for `all` prompts, from a score table."""
    every = pd.concat([scores, scores.assign(set="all")])
    grouped = every.groupby(["model", "set", "layer", "head"], sort=False)
    return grouped.agg(
        prompts=("prompt", "nunique"),
        mean_tokens=("n_tokens", "mean"),
        mean_sink_score=("sink_score", "mean"),
        mean_null_score=("null_score", "mean"),
        mean_excess_score=("excess_score", "mean"),
        mean_tail_score=("tail_score", "mean"),
        sink_share=("is_sink", "mean"),
        mean_output_norm=("output_norm", "mean"),
    ).reset_index()
