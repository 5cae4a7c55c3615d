"""Does a sink in the first layer go on being a sink in later layers at the same head index?

The original study's correlation is the mean, over heads that are sinks in the first layer, of the fraction of later
layers in which the same index is a sink. A high base rate of later sinks makes it high by itself, so every row
carries the base rate, the lift over it, phi, an interval and a permutation p-value.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from sinkstudy.stats.resampling import Resampling, drawn_p_value, exact_p_value, ratio_interval
from sinkstudy.store import Capture


def correlate(is_sink: np.ndarray, resampling: Resampling) -> dict[str, float | int]:
    """First-layer-to-later-layer statistics of sink decisions (prompt, layer, head) bool.

    Values that are undefined (no first-layer sinks, no later sinks, fewer than two layers) are NaN. The interval
    is a 95% percentile bootstrap over prompts, undefined unless two have first-layer sinks. The p-value is that of
    the observed statistic when head labels are permuted within every later layer, the same way for all prompts:
    exact for one prompt, otherwise the share of drawn permutations that reach it, the observed order being one.
    """
    pool = _Pool()
    pool.add(is_sink[:, None])
    return next(pool.rows(resampling))


class Correlation:
    """Rows per prompt at its whole length, per set and over all (prompt `all`), and over all at each of `lengths`.

    In rows over several prompts at their own lengths `n_tokens` is empty; with a length, prompts of at least that
    many tokens count, cut to it.
    """

    def __init__(self, thresholds: list[float], lengths: list[int]):
        self._thresholds = thresholds
        self._sets: dict[str, _Pool] = {}
        self._every, self._cut = _Pool(), {n: _Pool() for n in lengths}
        self._rows: list[dict[str, np.ndarray]] = []
        self._first_of_set: dict[str, int] = {}

    def add(self, order: np.ndarray, members: list[Capture], scores: np.ndarray) -> None:
        """Captures of one length with their places in the study and their scores (prompt, layer, head, query)."""
        whole = _decisions(scores[..., -1], self._thresholds)
        for n, pool in self._cut.items():
            if n <= scores.shape[-1]:
                pool.add(_decisions(scores[..., n - 1], self._thresholds))
        names = np.array([capture.set for capture in members])
        for name in dict.fromkeys(names.tolist()):
            of_set = names == name
            self._sets.setdefault(name, _Pool()).add(whole[of_set])
            first = int(order[of_set][0])
            self._first_of_set[name] = min(first, self._first_of_set.get(name, first))
        self._every.add(whole)
        self._rows.append(_prompt_rows(order, members, whole, self._thresholds))

    def table(self, model: str, resampling: Resampling) -> pd.DataFrame:
        columns = {name: np.concatenate([part[name] for part in self._rows]) for name in self._rows[0]}
        prompts = pd.DataFrame(columns).sort_values("order", kind="stable").drop(columns="order")
        pools = [(name, None, self._sets[name]) for name in sorted(self._sets, key=self._first_of_set.get)]
        pools += [("all", None, self._every)]
        pools += [("all", n, pool) for n, pool in self._cut.items() if pool.counts]
        rows = [
            {"set": name, "prompt": "all", "n_tokens": n, "threshold": threshold, **row, "prompts": pool.prompts}
            for name, n, pool in pools
            for threshold, row in zip(self._thresholds, pool.rows(resampling), strict=True)
        ]
        table = pd.concat([prompts, pd.DataFrame(rows)], ignore_index=True)
        table.insert(0, "model", model)
        return table.astype({"n_tokens": "Int64"})


def contingency(first: np.ndarray, both: np.ndarray, later: np.ndarray, cells: np.ndarray) -> dict[str, np.ndarray]:
    """Shares and association from counts, arrays of one shape: cells that are sinks first, first and later, later.

    Undefined values are NaN: a share of nothing, a lift over 0, phi (Pearson's correlation) of a constant.
    """
    first, both, later, cells = (np.asarray(a, float) for a in (first, both, later, cells))
    given, base = _divide(both, first), _divide(later, cells)
    spread = first * (cells - first) * later * (cells - later)
    return {
        "p_later_given_first": given,
        "p_later": base,
        "lift": _divide(given, base),
        "phi": _divide(cells * both - first * later, np.sqrt(spread)),
    }


class _Pool:
    """Prompts that make one row per threshold, kept as counts: memory hardly grows with their number."""

    def __init__(self) -> None:
        self.counts: list[np.ndarray] = []  # (prompt, threshold, 2): first-layer sinks, and later sinks that follow
        self.later: np.ndarray | int = 0  # (threshold, layer - 1)
        self.pairs: np.ndarray | int = 0  # (threshold, layer - 1, head, head), see `drawn_p_value`

    def add(self, is_sink: np.ndarray) -> None:
        """`is_sink` (prompt, threshold, layer, head) bool."""
        first, later = is_sink[:, :, 0], is_sink[:, :, 1:]
        self.counts.append(np.stack(_overlaps(is_sink), axis=-1))
        self.later = self.later + later.sum((0, 3))
        levels, layers, heads = later.shape[1:]
        left = first.transpose(1, 2, 0).astype(np.float32)  # (threshold, head, prompt)
        right = later.transpose(1, 0, 2, 3).reshape(levels, len(later), layers * heads).astype(np.float32)
        pairs = (left @ right).reshape(levels, heads, layers, heads).transpose(0, 2, 1, 3)
        self.pairs = self.pairs + pairs.astype(np.int32)

    @property
    def prompts(self) -> int:
        return sum(map(len, self.counts))

    def rows(self, resampling: Resampling) -> Iterable[dict[str, float | int]]:
        """The statistics at each threshold."""
        counts = np.concatenate(self.counts)  # (prompt, threshold, 2)
        layers, heads = self.pairs.shape[1:3]
        for i in range(counts.shape[1]):
            first, both = counts[:, i].T
            cells = len(counts) * layers * heads
            shares = contingency(layers * first.sum(), both.sum(), self.later[i].sum(), cells)
            row = {"first_layer_sinks": int(first.sum()), **{name: float(value) for name, value in shares.items()}}
            row |= dict.fromkeys(("ci_low", "ci_high", "p_value"), np.nan)
            if layers and first.sum():
                if (first > 0).sum() > 1:
                    row["ci_low"], row["ci_high"] = ratio_interval(both, layers * first, resampling)
                row["p_value"] = (
                    drawn_p_value(self.pairs[i], resampling)
                    if len(counts) > 1
                    else exact_p_value(int(first[0]), self.later[i], heads, int(both[0]))
                )
            yield row


def _decisions(score: np.ndarray, thresholds: list[float]) -> np.ndarray:
    """(prompt, layer, head) scores to (prompt, threshold, layer, head) bool."""
    return score[:, None] >= np.array(thresholds)[:, None, None]


def _overlaps(is_sink: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First-layer sinks, and later sinks at their head indices: (..., layer, head) bool to (...) int each."""
    first, later = is_sink[..., :1, :], is_sink[..., 1:, :]
    return first.sum((-2, -1)), (first & later).sum((-2, -1))


def _prompt_rows(
    order: np.ndarray, members: list[Capture], is_sink: np.ndarray, thresholds: list[float]
) -> dict[str, np.ndarray]:
    """The columns of a row per prompt and threshold; `is_sink` (prompt, threshold, layer, head)."""
    layers, heads = is_sink.shape[2] - 1, is_sink.shape[3]
    first, both = _overlaps(is_sink)  # (prompt, threshold)
    later = is_sink[:, :, 1:].sum(-1)  # (prompt, threshold, layer)
    p_value = np.full(first.shape, np.nan)
    if layers:
        for at in zip(*np.nonzero(first), strict=True):
            p_value[at] = exact_p_value(int(first[at]), later[at], heads, int(both[at]))
    times = len(thresholds)
    shares = contingency(layers * first, both, later.sum(-1), np.full(first.shape, layers * heads))
    undefined = np.full(first.size, np.nan)
    return {
        "order": np.repeat(order, times),
        "set": np.repeat(np.array([capture.set for capture in members], object), times),
        "prompt": np.repeat(np.array([capture.prompt for capture in members], object), times),
        "n_tokens": np.repeat([capture.n_tokens for capture in members], times),
        "threshold": np.tile(thresholds, len(members)),
        "first_layer_sinks": first.ravel(),
        **{name: values.ravel() for name, values in shares.items()},
        "ci_low": undefined,
        "ci_high": undefined,
        "p_value": p_value.ravel(),
        "prompts": np.ones(first.size, int),
    }


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)
