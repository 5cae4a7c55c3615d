"""Which heads are sinks whatever the prompt, and which only in some prompt sets.

Prompts are cut to the same length, because a head that is a sink on short prompts only would otherwise look like one
that depends on the set.
"""

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import pandas as pd
from scipy.stats import binomtest, false_discovery_control

from sinkstudy.stats.resampling import Resampling
from sinkstudy.store.reduced import Reduced

_DECISIONS_AT_ONCE = 1 << 22
_SHARES = "set layer head prompts sink_share share_low share_high"
_DEPENDENCE = (
    "layer head prompts sets sets_where_sink sink_share lowest_set lowest_share highest_set highest_share "
    "p_value q_value"
)


def persistence_tables(
    reduced: Reduced, model: str, lengths: Sequence[int], resampling: Resampling
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Shares per set (and `all`) and head, and per head whether its share depends on the set, at each of `lengths`."""
    shares, dependence = [], []
    for n in (n for n in lengths if len(reduced.reaching(n))):
        members = reduced.reaching(n)
        for i, threshold in enumerate(reduced.thresholds):
            # (prompt, layer and head); of one length and threshold at a time, as it grows with the prompts
            is_sink = np.concatenate([reduced.is_sink(block, n)[:, i] for block in reduced.blocks(members)])
            is_sink, names = is_sink.reshape(len(members), -1), reduced.sets[members]
            where = {"n_tokens": n, "threshold": threshold}
            heads = {
                "layer": np.repeat(reduced.layers, reduced.shape[1]),
                "head": np.tile(np.arange(reduced.shape[1]), reduced.shape[0]),
            }
            shares.append(_shares(names, is_sink, heads).assign(**where))
            dependence.append(_dependence(names, is_sink, heads, resampling).assign(**where))
    return _joined(shares, _SHARES, model), _joined(dependence, _DEPENDENCE, model)


def _shares(names: np.ndarray, is_sink: np.ndarray, heads: dict[str, np.ndarray]) -> pd.DataFrame:
    parts = []
    for name in ("all", *dict.fromkeys(names.tolist())):
        members = is_sink if name == "all" else is_sink[names == name]
        low, high = wilson_interval(members.sum(0), len(members))
        columns = {"prompts": len(members), "sink_share": members.mean(0), "share_low": low, "share_high": high}
        parts.append(pd.DataFrame({"set": name, **heads, **columns}))
    return pd.concat(parts)


def _dependence(
    names: np.ndarray, is_sink: np.ndarray, heads: dict[str, np.ndarray], resampling: Resampling
) -> pd.DataFrame:
    sets = np.array(list(dict.fromkeys(names.tolist())), object)
    share = np.stack([is_sink[names == name].mean(0) for name in sets])  # (set, layer and head)
    p_value = set_dependence(names, is_sink, resampling)
    return pd.DataFrame(
        {
            **heads,
            "prompts": len(names),
            "sets": len(sets),
            "sets_where_sink": (share >= 0.5).sum(0),
            "sink_share": is_sink.mean(0),
            "lowest_set": sets[share.argmin(0)],
            "lowest_share": share.min(0),
            "highest_set": sets[share.argmax(0)],
            "highest_share": share.max(0),
            "p_value": p_value,
            "q_value": false_discovery_rate(p_value),
        }
    )


def wilson_interval(hits: np.ndarray, prompts: int) -> tuple[np.ndarray, np.ndarray]:
    """95% score interval of a share (Wilson, Journal of the American Statistical Association 22, 1927)."""
    counts, index = np.unique(hits, return_inverse=True)
    ends = np.array([binomtest(int(count), prompts).proportion_ci(0.95, "wilson") for count in counts])
    return ends[index, 0], ends[index, 1]


def set_dependence(names: np.ndarray, is_sink: np.ndarray, resampling: Resampling) -> np.ndarray:
    """Permutation p-value per head that its share does not depend on the set; NaN where all prompts agree.

    `names` (prompt,) sets, `is_sink` (prompt, head) bool. Statistic: the between-set sum of squares, as in the
    analysis of variance; set labels are permuted over prompts, and the observed order counts as a permutation.
    """
    prompts = len(names)
    member = (np.array(list(dict.fromkeys(names.tolist())))[:, None] == names).astype(np.float32)  # (set, prompt)
    weight = 1 / member.sum(1)
    hits = is_sink.sum(0)
    undecided = (hits > 0) & (hits < prompts)
    p_value = np.full(is_sink.shape[1], np.nan)
    if len(member) < 2 or not undecided.any():
        return p_value
    # Heads with the same decisions on every prompt have the same p-value, so each pattern is tested once.
    patterns, index = np.unique(is_sink[:, undecided], axis=1, return_inverse=True)
    width, reached = max(1, _DECISIONS_AT_ONCE // prompts), []
    for start in range(0, patterns.shape[1], width):
        decisions = patterns[:, start : start + width].astype(np.float32)
        orders = chain([np.arange(prompts)], _orders(prompts, resampling))
        between = (weight @ (member[:, order] @ decisions) ** 2 for order in orders)  # (head,) each
        observed = next(between) * (1 - 1e-5)  # rounding must not put an equal sum below it
        reached.append(sum((drawn >= observed).astype(int) for drawn in between))
    p_value[undecided] = ((1 + np.concatenate(reached)) / (1 + resampling.permutations))[index.ravel()]
    return p_value


def _orders(prompts: int, resampling: Resampling) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(resampling.seed)
    return (rng.permutation(prompts) for _ in range(resampling.permutations))


def false_discovery_rate(p_value: np.ndarray) -> np.ndarray:
    """Adjusted p-values (Benjamini and Hochberg, Journal of the Royal Statistical Society B 57, 1995); NaN stay NaN."""
    adjusted = np.full(p_value.shape, np.nan)
    tested = ~np.isnan(p_value)
    adjusted[tested] = false_discovery_control(p_value[tested])
    return adjusted


def _joined(parts: list[pd.DataFrame], columns: str, model: str) -> pd.DataFrame:
    """One table that begins with model, length and threshold; with no rows where no prompt is long enough."""
    order = ["n_tokens", "threshold", *columns.split()]
    table = pd.concat(parts, ignore_index=True)[order] if parts else pd.DataFrame(columns=order)
    table.insert(0, "model", model)
    return table
