"""Does a sink in the first layer go on being a sink in later layers at the same head index?

The original study's correlation is the mean, over heads that are sinks in the first layer, of the fraction of later
layers in which the same index is a sink. A high base rate of later sinks makes it high by itself, so every row
carries the base rate, the lift over it, phi, an interval and a permutation p-value.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from sinkstudy.stats.prefixes import Prefixes
from sinkstudy.stats.relabelling import drawn_p_value, exact_p_value
from sinkstudy.stats.resampling import Resampling, ratio_intervals


def correlate(is_sink: np.ndarray, resampling: Resampling) -> dict[str, float | int]:
    """First-layer-to-later-layer statistics of sink decisions (prompt, layer, head) bool.

    Values that are undefined (no first-layer sinks, no later sinks, fewer than two layers) are NaN. The interval
    is a 95% percentile bootstrap over prompts, undefined unless two have first-layer sinks. The p-value is that of
    the observed statistic when head labels are permuted within every later layer, the same way for all prompts:
    exact for one prompt, otherwise the share of random permutations that reach it, the observed order among them.
    """
    pool = _Pool()
    pool.add(np.arange(len(is_sink)), is_sink[:, None])
    return next(pool.rows(resampling))


class Correlation:
    """Rows per prompt at its whole length, per set and over all (prompt `all`), and over all at each of `lengths`.

    In rows over several prompts at their own lengths `n_tokens` is empty; with a length, prompts of at least that
    many tokens count, cut to it. The interval of a row with a length is that of the curves, see `Curves`.
    """

    def __init__(self, thresholds: list[float], lengths: list[int]):
        self._thresholds = thresholds
        self._sets: dict[str, _Pool] = {}
        self._every, self._cut = _Pool(), {n: _Pool() for n in lengths}
        self._prompts: list[tuple[int, str, str, int]] = []  # position in the study, set, id, tokens
        self._counts: list[tuple[np.ndarray, ...]] = []  # see `_prompt_rows`
        self._first_of_set: dict[str, int] = {}

    def add(self, order: np.ndarray, prefixes: Prefixes) -> None:
        """Captures of one length, with their positions in the study."""
        members = prefixes.members
        whole = _decisions(prefixes.at(prefixes.n_tokens), self._thresholds)
        for n, pool in self._cut.items():
            if n <= prefixes.n_tokens:
                pool.add(order, _decisions(prefixes.at(n), self._thresholds))
        prompts = zip(order.tolist(), members, strict=True)
        self._prompts += [(position, capture.set, capture.prompt, capture.n_tokens) for position, capture in prompts]
        self._counts.append((*_overlaps(whole), whole[:, :, 1:].sum(-1).astype(np.uint16)))
        names = np.array([capture.set for capture in members])
        for name in dict.fromkeys(names.tolist()):
            of_set = names == name
            self._sets.setdefault(name, _Pool()).add(order[of_set], whole[of_set])
            first = int(order[of_set][0])
            self._first_of_set[name] = min(first, self._first_of_set.get(name, first))
        self._every.add(order, whole)
        self._heads = whole.shape[-1]

    def table(self, model: str, resampling: Resampling, curves: pd.DataFrame) -> pd.DataFrame:
        """`curves`: the table of curves of the same captures, which has the intervals at every length."""
        prompts = self._prompt_rows()
        pools = [(name, None, self._sets[name]) for name in sorted(self._sets, key=self._first_of_set.get)]
        pools += [("all", None, self._every)]
        pools += [("all", n, pool) for n, pool in self._cut.items() if pool.counts]
        rows = [
            {"set": name, "prompt": "all", "n_tokens": n, "threshold": threshold, **row, "prompts": pool.prompts}
            for name, n, pool in pools
            for threshold, row in zip(self._thresholds, pool.rows(resampling, intervals=n is None), strict=True)
        ]
        table = pd.concat([prompts, pd.DataFrame(rows)], ignore_index=True)
        table.insert(0, "model", model)
        at_length = (table["prompt"] == "all") & table["n_tokens"].notna()
        keys = ["n_tokens", "threshold"]
        ends = curves[curves["set"] == "all"].set_index(keys)[["p_later_given_first_low", "p_later_given_first_high"]]
        where = pd.MultiIndex.from_frame(table.loc[at_length, keys])
        table.loc[at_length, ["ci_low", "ci_high"]] = ends.reindex(where).to_numpy()
        return table.astype({"n_tokens": "Int64"})

    def _prompt_rows(self) -> pd.DataFrame:
        """A row per prompt and threshold, in the order of the study."""
        in_order = np.argsort([position for position, *_ in self._prompts])
        _, sets, ids, n_tokens = zip(*(self._prompts[i] for i in in_order), strict=True)
        # (prompt, threshold) each, and the later sinks of every layer (prompt, threshold, layer - 1)
        first, both, later = (np.concatenate(part)[in_order] for part in zip(*self._counts, strict=True))
        layers, times = later.shape[2], len(self._thresholds)
        shares = contingency(layers * first, both, later.sum(-1), np.full(first.shape, layers * self._heads))
        return pd.DataFrame(
            {
                "set": np.repeat(np.array(sets, object), times),
                "prompt": np.repeat(np.array(ids, object), times),
                "n_tokens": np.repeat(n_tokens, times),
                "threshold": np.tile(self._thresholds, len(ids)),
                "first_layer_sinks": first.ravel(),
                **{name: values.ravel() for name, values in shares.items()},
                "ci_low": np.nan,
                "ci_high": np.nan,
                "p_value": _p_values(first.ravel(), both.ravel(), later.reshape(-1, layers), self._heads),
                "prompts": 1,
            }
        )


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
    """The prompts behind one row per threshold, reduced to counts: memory hardly grows with their number."""

    def __init__(self) -> None:
        self.order: list[int] = []  # positions in the study, so that draws do not depend on the order of adding
        self.counts: list[np.ndarray] = []  # (prompt, threshold, 2): first-layer sinks, and later sinks that follow
        self.later: np.ndarray | int = 0  # (threshold, layer - 1)
        self.pairs: np.ndarray | int = 0  # (threshold, layer - 1, head, head), see `drawn_p_value`

    def add(self, order: np.ndarray, is_sink: np.ndarray) -> None:
        """`is_sink` (prompt, threshold, layer, head) bool."""
        first, later = is_sink[:, :, 0], is_sink[:, :, 1:]
        self.order += order.tolist()
        self.counts.append(np.stack(_overlaps(is_sink), axis=-1))
        self.later = self.later + later.sum((0, 3))
        levels, layers, heads = later.shape[1:]
        left = first.transpose(1, 2, 0).astype(np.float32)  # (threshold, head, prompt)
        right = later.transpose(1, 0, 2, 3).reshape(levels, len(later), layers * heads).astype(np.float32)
        pairs = (left @ right).reshape(levels, heads, layers, heads).transpose(0, 2, 1, 3)
        self.pairs = self.pairs + pairs.astype(np.int32)

    @property
    def prompts(self) -> int:
        return len(self.order)

    def rows(self, resampling: Resampling, intervals: bool = True) -> Iterator[dict[str, float | int]]:
        """The statistics at each threshold."""
        counts = np.concatenate(self.counts)[np.argsort(self.order)]  # (prompt, threshold, 2)
        layers, heads = self.pairs.shape[1:3]
        low, high = np.full((2, counts.shape[1]), np.nan)
        if intervals:
            low, high = ratio_intervals(counts[..., 1], layers * counts[..., 0], resampling)
        for i in range(counts.shape[1]):
            first, both = counts[:, i].T
            cells = len(counts) * layers * heads
            shares = contingency(layers * first.sum(), both.sum(), self.later[i].sum(), cells)
            row = {"first_layer_sinks": int(first.sum()), **{name: float(value) for name, value in shares.items()}}
            row |= {"ci_low": float(low[i]), "ci_high": float(high[i]), "p_value": np.nan}
            if layers and first.sum():
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


def _p_values(first: np.ndarray, both: np.ndarray, later: np.ndarray, heads: int) -> np.ndarray:
    """`exact_p_value` of every row, NaN without first-layer sinks; `later` (row, layer - 1).

    Many prompts of a small model share a few combinations of counts, so each combination is computed once.
    """
    rows = list(map(tuple, np.column_stack([first, both, np.sort(later, axis=1)]).tolist()))
    known = {
        row: exact_p_value(row[0], np.array(row[2:]), heads, row[1]) if row[0] and row[2:] else np.nan
        for row in set(rows)
    }
    return np.array([known[row] for row in rows])


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)
