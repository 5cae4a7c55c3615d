"""Which heads are sinks whatever the prompt, and which only in some prompt sets.

Prompts are cut to the same length, because a head that is a sink on short prompts only would otherwise look like one
that depends on the set.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import binomtest, false_discovery_control

from sinkstudy.stats.reduced import Reduced
from sinkstudy.stats.resampling import Resampling
from sinkstudy.stats.scores import head_columns

_DECISIONS_AT_ONCE = 1 << 22
_SHARES = "model n_tokens threshold set layer head prompts sink_share share_low share_high"
_DEPENDENCE = (
    "model n_tokens threshold layer head prompts sets sets_where_sink sink_share lowest_set lowest_share highest_set "
    "highest_share p_value q_value"
)


def persistence_tables(
    reduced: Reduced, model: str, lengths: Sequence[int], resampling: Resampling
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Shares per set (and `all`) and head, and per head whether its share depends on the set, at each of `lengths`."""
    shares, dependence = [], []
    for n in lengths:
        members = reduced.reaching(n)
        if not len(members):
            continue
        names = reduced.sets[members]
        for i, threshold in enumerate(reduced.thresholds):
            # (prompt, layer and head); of one length and threshold at a time, as it grows with the prompts
            is_sink = np.concatenate([reduced.is_sink(block, n)[:, i] for block in reduced.blocks(members)])
            is_sink = is_sink.reshape(len(members), -1)
            about = {"model": model, "n_tokens": n, "threshold": threshold} | head_columns(reduced)
            shares += _shares(names, is_sink, about)
            dependence.append(_dependence(names, is_sink, about, resampling))
    return _joined(shares, _SHARES), _joined(dependence, _DEPENDENCE)


def _joined(parts: list[pd.DataFrame], columns: str) -> pd.DataFrame:
    """With no rows where no prompt is long enough."""
    columns = columns.split()
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def _shares(names: np.ndarray, is_sink: np.ndarray, about: dict[str, object]) -> list[pd.DataFrame]:
    """A part for all prompts and for each set, with the columns `about`."""
    parts = []
    for name in ("all", *pd.unique(names)):
        members = is_sink if name == "all" else is_sink[names == name]
        low, high = wilson_interval(members.sum(0), len(members))
        columns = {"prompts": len(members), "sink_share": members.mean(0), "share_low": low, "share_high": high}
        parts.append(pd.DataFrame(about | {"set": name} | columns))
    return parts


def _dependence(
    names: np.ndarray, is_sink: np.ndarray, about: dict[str, object], resampling: Resampling
) -> pd.DataFrame:
    sets = pd.unique(names)
    share = np.stack([is_sink[names == name].mean(0) for name in sets])  # (set, layer and head)
    p_value = set_dependence(names, is_sink, resampling)
    columns = {
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
    return pd.DataFrame(about | columns)


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
    member = (pd.unique(names)[:, None] == names).astype(np.float32)  # (set, prompt)
    weight = 1 / member.sum(1)
    undecided = is_sink.any(0) & ~is_sink.all(0)
    p_value = np.full(is_sink.shape[1], np.nan)
    if len(member) < 2 or not undecided.any():
        return p_value
    # Heads with the same decisions on every prompt have the same p-value, so each pattern is tested once.
    patterns, index = np.unique(is_sink[:, undecided], axis=1, return_inverse=True)
    width, reached = max(1, _DECISIONS_AT_ONCE // prompts), []
    for start in range(0, patterns.shape[1], width):
        decisions = patterns[:, start : start + width].astype(np.float32)
        observed = weight @ (member @ decisions) ** 2 * (1 - 1e-5)  # rounding must not put an equal sum below it
        rng, hits = np.random.default_rng(resampling.seed), np.ones(len(observed), int)
        for _ in range(resampling.permutations):
            hits += weight @ (member[:, rng.permutation(prompts)] @ decisions) ** 2 >= observed
        reached.append(hits)
    p_value[undecided] = (np.concatenate(reached) / (1 + resampling.permutations))[index.ravel()]
    return p_value


def false_discovery_rate(p_value: np.ndarray) -> np.ndarray:
    """Adjusted p-values (Benjamini and Hochberg, Journal of the Royal Statistical Society B 57, 1995); NaN stay NaN."""
    adjusted = np.full(p_value.shape, np.nan)
    tested = ~np.isnan(p_value)
    adjusted[tested] = false_discovery_control(p_value[tested])
    return adjusted
