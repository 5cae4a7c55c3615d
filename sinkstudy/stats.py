"""Does a sink in the first layer go on being a sink in later layers at the same head index?

The original study's correlation is the mean, over heads that are sinks in the first layer, of the fraction of later
layers in which the same index is a sink. A high base rate of later sinks makes it high by itself, so every row
carries the base rate, the lift over it, phi, an interval and a permutation p-value.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from sinkstudy.scores import prefix_scores
from sinkstudy.store import Capture


@dataclass(frozen=True)
class Resampling:
    """How many bootstrap draws and permutations, and the seed of both."""

    bootstrap: int
    permutations: int
    seed: int


def follow_fraction(is_sink: np.ndarray) -> np.ndarray:
    """Fraction of later layers in which each head index is a sink: (..., layer, head) bool to (..., head)."""
    return is_sink[..., 1:, :].mean(axis=-2)


def correlate(is_sink: np.ndarray, resampling: Resampling) -> dict[str, float | int]:
    """First-layer-to-later-layer statistics of sink decisions (prompt, layer, head) bool.

    Values that are undefined (no first-layer sinks, no later sinks, fewer than two layers) are NaN. The interval
    is a 95% percentile bootstrap over prompts, undefined unless two have first-layer sinks. The p-value is the share
    of permutations of head labels within every later layer (the same ones for all prompts) that reach the observed
    statistic, the observed order counted as one of them.
    """
    first, later = is_sink[:, 0], is_sink[:, 1:]  # (prompt, head), (prompt, layer - 1, head)
    sinks = int(first.sum())
    row: dict[str, float | int] = {"first_layer_sinks": sinks}
    row |= dict.fromkeys(("p_later_given_first", "p_later", "lift", "phi", "ci_low", "ci_high", "p_value"), np.nan)
    if later.shape[1] == 0:
        return row
    row["p_later"] = float(later.mean())
    row["phi"] = _phi(np.broadcast_to(first[:, None], later.shape), later)
    if sinks == 0:
        return row
    follow = follow_fraction(is_sink)  # (prompt, head)
    row["p_later_given_first"] = float(follow[first].mean())
    if row["p_later"] > 0:
        row["lift"] = row["p_later_given_first"] / row["p_later"]
    if (first.sum(1) > 0).sum() > 1:
        row["ci_low"], row["ci_high"] = _bootstrap(first.sum(1), (first * follow).sum(1), resampling)
    row["p_value"] = _permutation_p(first, later, resampling)
    return row


def correlation_table(
    captures: Iterable[Capture],
    model: str,
    thresholds: list[float],
    lengths: list[int],
    resampling: Resampling,
) -> pd.DataFrame:
    """Rows per prompt at its whole length, per set and over all (prompt `all`), and over all at each of `lengths`.

    In rows over several prompts at their own lengths `n_tokens` is empty; with a length, prompts of at least that
    many tokens count, cut to it.
    """
    whole: list[np.ndarray] = []  # per prompt (threshold, layer, head)
    cut: dict[int, list[np.ndarray]] = {n: [] for n in lengths}
    names: list[tuple[str, str, int]] = []
    levels = np.array(thresholds)[:, None, None]
    for capture in captures:
        score = prefix_scores(capture.sink_mass, capture.row_sum)
        names.append((capture.set, capture.prompt, capture.n_tokens))
        whole.append(score[..., -1] >= levels)
        for n in lengths:
            if n <= capture.n_tokens:
                cut[n].append(score[..., n - 1] >= levels)

    groups = [(s, p, n, [decision]) for (s, p, n), decision in zip(names, whole, strict=True)]
    for name in dict.fromkeys(s for s, _, _ in names):
        members = [d for (s, _, _), d in zip(names, whole, strict=True) if s == name]
        groups.append((name, "all", None, members))
    groups.append(("all", "all", None, whole))
    groups += [("all", "all", n, members) for n, members in cut.items() if members]
    rows = []
    for set_name, prompt, n, members in groups:
        stacked = np.stack(members)  # (prompt, threshold, layer, head)
        for i, threshold in enumerate(thresholds):
            key = {"model": model, "set": set_name, "prompt": prompt, "n_tokens": n, "threshold": threshold}
            rows.append(key | correlate(stacked[:, i], resampling) | {"prompts": len(members)})
    return pd.DataFrame(rows).astype({"n_tokens": "Int64"})


def _phi(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson correlation of two boolean arrays; NaN where either is constant."""
    if x.all() or y.all() or not x.any() or not y.any():
        return np.nan
    return float(np.corrcoef(x.ravel(), y.ravel())[0, 1])


def _bootstrap(weight: np.ndarray, total: np.ndarray, resampling: Resampling) -> tuple[float, float]:
    """Percentile interval of sum(total) / sum(weight) over resampled prompts; draws without any weight do not count."""
    prompts = len(weight)
    rng = np.random.default_rng(resampling.seed)
    counts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resampling.bootstrap)
    drawn = counts @ weight
    ratios = (counts @ total)[drawn > 0] / drawn[drawn > 0]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def _permutation_p(first: np.ndarray, later: np.ndarray, resampling: Resampling) -> float:
    """One-sided permutation p-value, (1 + hits) / (1 + permutations)."""
    if len(first) == 1:
        observed = int((first[0] & later[0]).sum())
        null = _null_of_counts(int(first.sum()), tuple(later[0].sum(1).tolist()), first.shape[1], resampling)
        return (1 + len(null) - int(np.searchsorted(null, observed))) / (1 + len(null))
    # pairs[l, g, h]: prompts in which head g is a sink in the first layer and head h in later layer l. Relabelling
    # the heads of layer l picks one entry per g, so no permutation has to touch the prompts again.
    pairs = np.einsum("pg,plh->lgh", first.astype(np.int32), later.astype(np.int32), optimize=True)
    layers, heads = pairs.shape[:2]
    observed = np.trace(pairs, axis1=1, axis2=2).sum()
    labels = _relabellings(layers, heads, resampling)
    reached = np.zeros(len(labels), dtype=np.int64)
    for layer in range(layers):
        reached += pairs[layer, np.arange(heads), labels[:, layer]].sum(1)
    return (1 + int((reached >= observed).sum())) / (1 + resampling.permutations)


@lru_cache(maxsize=4096)
def _null_of_counts(first: int, later: tuple[int, ...], heads: int, resampling: Resampling) -> np.ndarray:
    """Permutation distribution of one prompt, sorted: it depends only on how many heads are sinks in each layer.

    Tables have a row per prompt, and thousands of prompts share a few such counts.
    """
    labels = _relabellings(len(later), heads, resampling)
    return np.sort((labels[:, :, :first] < np.array(later)[:, None]).sum((1, 2)))


@lru_cache(maxsize=1)
def _relabellings(layers: int, heads: int, resampling: Resampling) -> np.ndarray:
    """Random orders of the heads of every layer, (permutation, layer, head); the same for every row of a table."""
    rng = np.random.default_rng(resampling.seed)
    order = np.broadcast_to(np.arange(heads, dtype=np.int16), (resampling.permutations, layers, heads))
    return rng.permuted(order, axis=2)
