"""P-values by relabelling heads: would other labels of the later layers' heads follow the first layer as well?"""

from functools import lru_cache, reduce

import numpy as np
from scipy.stats import hypergeom

from sinkstudy.stats.resampling import Resampling


def exact_p_value(first: int, later: np.ndarray, heads: int, observed: int) -> float:
    """P(overlap >= observed) when the heads of every later layer are relabelled at random.

    `first` heads are sinks in the first layer, `later` (layer,) in the later ones. The overlap with one layer is
    hypergeometric (Fisher's exact test), and layers are relabelled independently, so their sum has the convolution.
    """
    return float(_tail(first, tuple(sorted(later.tolist())), heads)[observed])


def exact_p_values(is_sink: np.ndarray) -> np.ndarray:
    """`exact_p_value` of every prompt and threshold, from decisions (prompt, threshold, layer, head) bool; NaN without
    first-layer sinks or without later layers."""
    first, later = is_sink[:, :, 0], is_sink[:, :, 1:]
    overlap = (first[:, :, None] & later).sum((2, 3))
    p_values = np.full(overlap.shape, np.nan)
    defined = first.any(2) & (later.shape[2] > 0)
    for at in zip(*np.nonzero(defined), strict=True):
        p_values[at] = exact_p_value(int(first[at].sum()), later[at].sum(1), is_sink.shape[3], overlap[at])
    return p_values


@lru_cache(maxsize=1 << 10)
def _tail(first: int, later: tuple[int, ...], heads: int) -> np.ndarray:
    """P(sum of overlaps >= k) by k. Thousands of prompts of a small model share a few such counts."""
    overlaps = hypergeom.pmf(np.arange(first + 1), heads, first, np.array(later)[:, None])  # (layer, overlap)
    # Summed from the far end, so that small probabilities keep their digits.
    return np.minimum(np.cumsum(reduce(np.convolve, overlaps)[::-1])[::-1], 1.0)


def drawn_p_value(pairs: np.ndarray, resampling: Resampling) -> float:
    """The same for several prompts, from random relabellings that they share: (1 + hits) / (1 + permutations).

    `pairs` (layer, head, head): prompts in which head g is a sink in the first layer and head h in a later one.
    Relabelling the heads of a layer picks one entry per g, so no permutation has to touch the prompts again.
    """
    layers, heads = pairs.shape[:2]
    indices = _relabelled_indices(layers, heads, resampling)
    reached = pairs.reshape(-1)[indices].sum(1)
    observed = np.trace(pairs, axis1=1, axis2=2).sum()
    return (1 + int((reached >= observed).sum())) / (1 + resampling.permutations)


@lru_cache(maxsize=1)
def _relabelled_indices(layers: int, heads: int, resampling: Resampling) -> np.ndarray:
    """Indices into a flattened `pairs` under random orders of every layer's heads, (permutation, layer and head)."""
    rng = np.random.default_rng(resampling.seed)
    order = np.broadcast_to(np.arange(heads), (resampling.permutations, layers, heads))
    rows = np.arange(layers * heads).reshape(layers, heads) * heads
    return (rng.permuted(order, axis=2) + rows).reshape(resampling.permutations, -1)
