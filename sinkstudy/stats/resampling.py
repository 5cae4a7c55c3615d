"""Intervals by resampling prompts, and p-values by relabelling heads."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import comb

import numpy as np

_TAILS = [0.025, 0.975]
_NUMBERS_AT_ONCE = 1 << 18
_COLUMNS_AT_ONCE = 1 << 11


@dataclass(frozen=True)
class Resampling:
    """How many bootstrap draws and permutations, and the seed of both."""

    bootstrap: int
    permutations: int
    seed: int


def resamples(counts: np.ndarray, resampling: Resampling, width: int = 1) -> Iterator[np.ndarray]:
    """How often each kind of prompt is drawn, (draw, kind) float64, in parts of bounded size.

    `counts` (kind,): how many prompts there are of each. Prompts that agree in all that is counted are one kind:
    drawing kinds in proportion to their counts is drawing prompts. `width`: numbers made of each draw by the caller.
    The draws depend on the seed and `counts` alone, not on how many come at once.
    """
    rng = np.random.default_rng(resampling.seed)
    total, at_once = counts.sum(), max(1, _NUMBERS_AT_ONCE // max(width, len(counts)))
    for start in range(0, resampling.bootstrap, at_once):
        draws = min(at_once, resampling.bootstrap - start)
        yield rng.multinomial(total, counts / total, size=draws).astype(float)


def ratio_interval(part: np.ndarray, whole: np.ndarray, resampling: Resampling) -> tuple[float, float]:
    """95% percentile bootstrap interval of sum(part) / sum(whole) over prompts, (prompt,) each.

    Draws in which the whole is 0 do not count (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13).
    """
    pairs, counts = np.unique(part + 1j * whole, return_counts=True)  # far faster than rows of two
    kinds = np.stack([pairs.real, pairs.imag], axis=1)
    drawn = np.concatenate([draw @ kinds for draw in resamples(counts, resampling)])  # (draw, 2)
    drawn = drawn[drawn[:, 1] > 0]
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], _TAILS)
    return float(low), float(high)


def ratio_intervals(part: np.ndarray, whole: np.ndarray, resampling: Resampling) -> tuple[np.ndarray, np.ndarray]:
    """The same for many ratios that share their resamples: (prompt, column) each, to (column,) low and high.

    NaN where fewer than two prompts count: one prompt says nothing of how prompts vary.
    """
    low, high = np.full((2, part.shape[1]), np.nan)
    usable = np.flatnonzero((whole > 0).sum(0) > 1)
    each = np.ones(len(part), int)
    for start in range(0, len(usable), _COLUMNS_AT_ONCE):
        columns = usable[start : start + _COLUMNS_AT_ONCE]
        parts, wholes = (side[:, columns].astype(float, copy=False) for side in (part, whole))
        ratios = np.concatenate([_ratio(draw @ parts, draw @ wholes) for draw in resamples(each, resampling)])
        low[columns], high[columns] = np.nanquantile(ratios, _TAILS, axis=0)
    return low, high


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def exact_p_value(first: int, later: np.ndarray, heads: int, observed: int) -> float:
    """P(overlap >= observed) when the heads of every later layer are relabelled at random.

    `first` heads are sinks in the first layer, `later` (layer,) in the later ones. The overlap with one layer is
    hypergeometric (Fisher's exact test), and layers are relabelled independently, so their sum has the convolution.
    """
    return float(_tail(first, tuple(sorted(later.tolist())), heads)[observed])


@lru_cache(maxsize=1 << 10)
def _tail(first: int, later: tuple[int, ...], heads: int) -> np.ndarray:
    """P(sum of overlaps >= k) by k. Thousands of prompts of a small model share a few such counts."""
    distribution = np.ones(1)
    for sinks in later:
        distribution = np.convolve(distribution, _overlap(first, sinks, heads))
    # Summed from the far end, so that small probabilities keep their digits.
    return np.minimum(np.cumsum(distribution[::-1])[::-1], 1.0)


@lru_cache(maxsize=1 << 10)
def _overlap(first: int, sinks: int, heads: int) -> np.ndarray:
    """P(k of `sinks` heads drawn without replacement are among `first` of `heads`), for k from 0 to `first`."""
    return np.array(
        [
            comb(first, k) * comb(heads - first, sinks - k) / comb(heads, sinks) if k <= sinks else 0.0
            for k in range(first + 1)
        ]
    )


def drawn_p_value(pairs: np.ndarray, resampling: Resampling) -> float:
    """The same for several prompts that share the labels: (1 + hits) / (1 + permutations) over drawn relabellings.

    `pairs` (layer, head, head): prompts in which head g is a sink in the first layer and head h in a later one.
    Relabelling the heads of a layer picks one entry per g, so no permutation has to touch the prompts again.
    """
    layers, heads = pairs.shape[:2]
    places = _relabelled_places(layers, heads, resampling)
    reached = pairs.reshape(-1)[places].sum(1)
    observed = np.trace(pairs, axis1=1, axis2=2).sum()
    return (1 + int((reached >= observed).sum())) / (1 + resampling.permutations)


@lru_cache(maxsize=1)
def _relabelled_places(layers: int, heads: int, resampling: Resampling) -> np.ndarray:
    """Where a flat `pairs` is read under random orders of every layer's heads, (permutation, layer and head)."""
    rng = np.random.default_rng(resampling.seed)
    order = np.broadcast_to(np.arange(heads), (resampling.permutations, layers, heads))
    rows = np.arange(layers * heads).reshape(layers, heads) * heads
    return (rng.permuted(order, axis=2) + rows).reshape(resampling.permutations, -1)
