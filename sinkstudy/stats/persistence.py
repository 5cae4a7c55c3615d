"""Which heads are sinks whatever the prompt, and which only in some prompt sets.

Prompts are cut to the same length, because a head that is a sink on short prompts only would otherwise look like one
that depends on the set.
"""

import numpy as np
import pandas as pd
from scipy.stats import binomtest, false_discovery_control

from sinkstudy.stats.prefixes import Prefixes
from sinkstudy.stats.resampling import Resampling

_SHARES = "set layer head prompts sink_share share_low share_high"
_DEPENDENCE = (
    "layer head prompts sets sets_where_sink sink_share lowest_set lowest_share highest_set highest_share "
    "p_value q_value"
)


class Persistence:
    """Sink decisions per prompt at some lengths, stored as bits."""

    def __init__(self, thresholds: list[float], lengths: list[int]):
        self._thresholds, self._lengths = thresholds, lengths
        # By length, for each prompt the packed bits of (threshold, layer, head).
        self._bits: dict[int, list[np.ndarray]] = {n: [] for n in lengths}
        self._sets: dict[int, list[tuple[int, str]]] = {n: [] for n in lengths}

    def add(self, order: np.ndarray, prefixes: Prefixes) -> None:
        """Captures of one length, with their positions in the study."""
        self._layers, self._heads = prefixes.members[0].layers, prefixes.scores.shape[2]
        for n in self._lengths:
            if n <= prefixes.n_tokens:
                is_sink = prefixes.at(n)[:, None] >= np.array(self._thresholds)[:, None, None]
                self._bits[n] += list(np.packbits(is_sink.reshape(len(order), -1), axis=1))
                self._sets[n] += zip(order.tolist(), (capture.set for capture in prefixes.members), strict=True)

    def tables(self, model: str, resampling: Resampling) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Shares per set (and `all`) and head; and per head whether its share depends on the set."""
        shares, dependence = [], []
        for n in self._lengths:
            if self._bits[n]:
                names, is_sink = self._decisions(n)
                for i, threshold in enumerate(self._thresholds):
                    where = {"n_tokens": n, "threshold": threshold}
                    shares.append(self._shares(names, is_sink[:, i]).assign(**where))
                    dependence.append(self._dependence(names, is_sink[:, i], resampling).assign(**where))
        return _joined(shares, _SHARES, model), _joined(dependence, _DEPENDENCE, model)

    def _decisions(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The set of every prompt, and (prompt, threshold, layer and head) bool, in the order of the study."""
        order = np.argsort([position for position, _ in self._sets[n]])
        names = np.array([name for _, name in self._sets[n]])[order]
        cells = len(self._layers) * self._heads
        bits = np.unpackbits(np.stack(self._bits[n])[order], axis=1, count=len(self._thresholds) * cells)
        return names, bits.reshape(len(names), len(self._thresholds), cells).astype(bool)

    def _shares(self, names: np.ndarray, is_sink: np.ndarray) -> pd.DataFrame:
        parts = []
        for name in ("all", *dict.fromkeys(names.tolist())):
            members = is_sink if name == "all" else is_sink[names == name]
            low, high = wilson_interval(members.sum(0), len(members))
            parts.append(
                pd.DataFrame(
                    {
                        "set": name,
                        **self._head_columns(),
                        "prompts": len(members),
                        "sink_share": members.mean(0),
                        "share_low": low,
                        "share_high": high,
                    }
                )
            )
        return pd.concat(parts)

    def _dependence(self, names: np.ndarray, is_sink: np.ndarray, resampling: Resampling) -> pd.DataFrame:
        sets = list(dict.fromkeys(names.tolist()))
        share = np.stack([is_sink[names == name].mean(0) for name in sets])  # (set, layer and head)
        usual = share >= 0.5
        p_value = set_dependence(names, is_sink, resampling)
        return pd.DataFrame(
            {
                **self._head_columns(),
                "prompts": len(names),
                "sets": len(sets),
                "sets_where_sink": usual.sum(0),
                "sink_share": is_sink.mean(0),
                "lowest_set": np.array(sets, object)[share.argmin(0)],
                "lowest_share": share.min(0),
                "highest_set": np.array(sets, object)[share.argmax(0)],
                "highest_share": share.max(0),
                "p_value": p_value,
                "q_value": false_discovery_rate(p_value),
            }
        )

    def _head_columns(self) -> dict[str, np.ndarray]:
        return {
            "layer": np.repeat(self._layers, self._heads),
            "head": np.tile(np.arange(self._heads), len(self._layers)),
        }


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
    decisions = patterns.astype(np.float32)

    def between(order: np.ndarray) -> np.ndarray:
        return weight @ (member[:, order] @ decisions) ** 2  # (head,)

    rng = np.random.default_rng(resampling.seed)
    observed = between(np.arange(prompts)) * (1 - 1e-5)  # rounding must not put an equal sum below it
    reached = sum((between(rng.permutation(prompts)) >= observed).astype(int) for _ in range(resampling.permutations))
    p_value[undecided] = ((1 + reached) / (1 + resampling.permutations))[index.ravel()]
    return p_value


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
