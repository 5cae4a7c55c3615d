"""Sink fraction, excess and correlation at every prefix length: of each prompt, and over prompts with intervals.

A length counts the prompts of at least that many tokens, cut to it. Sink fraction and excess are means over prompts;
the correlation pools first-layer sinks.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from sinkstudy.stats.correlation import contingency
from sinkstudy.stats.prefixes import Prefixes
from sinkstudy.stats.resampling import Resampling, percentiles, ratio_intervals, resamples
from sinkstudy.stats.scores import excess_score, null_score

_NUMBERS_AT_ONCE = 1 << 17
_FEWEST_LENGTHS = 16
_ROWS_AT_ONCE = 1 << 15


class Curves:
    """Counts per prompt, threshold and length: a few numbers per token are kept, never a capture."""

    def __init__(self, thresholds: list[float]):
        self.thresholds = thresholds
        self._sets: list[str] = []
        self._prompts: list[str] = []
        self._order: list[int] = []
        self._mean: list[np.ndarray] = []  # per prompt (query,)
        self._counts: list[np.ndarray] = []  # per prompt (threshold, query, 3): sinks, in the first layer, followers

    def add(self, order: np.ndarray, prefixes: Prefixes) -> None:
        """Captures of one length, with their positions in the study."""
        self._layers, self._heads = prefixes.scores.shape[1:3]
        self._counts += list(np.stack([prefixes.sink_counts(threshold) for threshold in self.thresholds], axis=1))
        self._mean += list(prefixes.mean_scores())
        self._sets += [capture.set for capture in prefixes.members]
        self._prompts += [capture.prompt for capture in prefixes.members]
        self._order += order.tolist()

    def prompt_tables(self, model: str) -> Iterator[pd.DataFrame]:
        """One row per prompt, threshold and prefix length, in the order of the study, in parts of bounded size.

        `sink_fraction` is that of all heads; `mean_score` and `mean_excess` are averages over them.
        """
        part, rows = [], 0
        for p in np.argsort(self._order).tolist():
            part.append(p)
            rows += len(self.thresholds) * len(self._mean[p])
            if rows >= _ROWS_AT_ONCE:
                yield self._prompt_rows(model, part)
                part, rows = [], 0
        if part:
            yield self._prompt_rows(model, part)

    def _prompt_rows(self, model: str, members: list[int]) -> pd.DataFrame:
        ends, times = np.array([len(self._mean[p]) for p in members]), len(self.thresholds)
        every = np.arange(1, ends.max() + 1)
        n_tokens = np.concatenate([every[:n] for n in ends for _ in self.thresholds])
        mean = np.concatenate([self._mean[p] for p in members for _ in self.thresholds])
        null = null_score(every)[n_tokens - 1]
        sinks = np.concatenate([self._counts[p][..., 0].ravel() for p in members])
        return pd.DataFrame(
            {
                "model": pd.Categorical.from_codes(np.zeros_like(n_tokens), [model]),  # a code per row, not a string
                "set": pd.Categorical([self._sets[p] for p in members]).repeat(times * ends),
                "prompt": pd.Categorical([self._prompts[p] for p in members]).repeat(times * ends),
                "n_tokens": n_tokens,
                "threshold": np.repeat(np.tile(self.thresholds, len(members)), np.repeat(ends, times)),
                "sink_fraction": sinks / (self._layers * self._heads),
                "mean_score": mean,
                "null_score": null,
                "mean_excess": excess_score(mean, null),
            }
        )

    def table(self, model: str, resampling: Resampling) -> pd.DataFrame:
        """Rows per set (and `all`), threshold and length."""
        parts = [
            self._rows(members, threshold, resampling).assign(set=name)
            for name, members in self._members()
            for threshold in range(len(self.thresholds))
        ]
        table = pd.concat(parts, ignore_index=True)
        table.insert(0, "model", model)
        table.insert(1, "set", table.pop("set"))
        return table

    def weakening_table(self, model: str, resampling: Resampling) -> pd.DataFrame:
        """A row per threshold over all prompts, see `weakening`."""
        (_, members), *_ = self._members()
        rows = []
        for i, threshold in enumerate(self.thresholds):
            lengths = np.arange(1, self._longest(members) + 1)
            informative = null_score(lengths) < threshold  # elsewhere uniform attention is itself a sink
            # The null score only falls with length, so all lengths from the first informative one on are.
            start = int(np.argmax(informative)) if informative.any() else len(lengths)
            sinks, first, both, reached = self._padded(members, i, start, len(lengths))
            cells = (self._layers - 1, self._heads)
            found = weakening(first, both, sinks - first, reached, lengths[start:], cells, resampling)
            rows.append({"threshold": threshold, **found})
        table = pd.DataFrame(rows)
        table.insert(0, "model", model)
        return table.astype({name: "Int64" for name in ("length", "length_low", "length_high", "last_length")})

    def _members(self) -> list[tuple[str, np.ndarray]]:
        """`all` and every set in the order of the study, with the prompts of each."""
        order = np.argsort(self._order)
        names = np.array(self._sets)[order]
        return [("all", order)] + [(name, order[names == name]) for name in dict.fromkeys(names.tolist())]

    def _longest(self, members: np.ndarray) -> int:
        return max(len(self._mean[p]) for p in members)

    def _padded(self, members: np.ndarray, threshold: int, start: int, stop: int) -> tuple[np.ndarray, ...]:
        """Sinks, first-layer sinks, followers (uint16) and whether a prompt is that long (bool), (prompt, length) each.

        Lengths from start + 1 to stop; beyond a prompt's end all are 0.
        """
        counts = np.zeros((3, len(members), stop - start), np.uint16)
        for row, p in enumerate(members):
            part = self._counts[p][threshold][start:stop]
            counts[:, row, : len(part)] = part.T
        ends = np.array([len(self._mean[p]) for p in members])
        return *counts, ends[:, None] > np.arange(start, stop)

    def _rows(self, members: np.ndarray, i: int, resampling: Resampling) -> pd.DataFrame:
        """Computed for a bounded number of lengths at a time, so that memory stays bounded with many prompts."""
        longest, width = self._longest(members), max(_FEWEST_LENGTHS, _NUMBERS_AT_ONCE // len(members))
        starts = range(0, longest, width)
        return pd.concat([self._block(members, i, at, min(at + width, longest), resampling) for at in starts])

    def _block(self, members: np.ndarray, i: int, start: int, stop: int, resampling: Resampling) -> pd.DataFrame:
        """The rows of lengths from start + 1 to stop."""
        sinks, first, both, reached = self._padded(members, i, start, stop)
        mean = np.zeros(reached.shape)
        for row, p in enumerate(members):
            part = self._mean[p][start:stop]
            mean[row, : len(part)] = part
        later, reached = sinks.astype(float) - first, reached.astype(float)
        prompts, lengths = reached.sum(0), np.arange(start + 1, stop + 1)
        layers, heads = self._layers - 1, self._heads
        null = null_score(lengths)
        fraction = sinks / (self._layers * heads)
        shares = contingency(layers * first.sum(0), both.sum(0), later.sum(0), layers * heads * prompts)
        estimates = {
            "sink_fraction": (fraction, reached),
            "mean_excess": (excess_score(mean, null) * reached, reached),
            "p_later_given_first": (both, layers * first),
            "p_later": (later, layers * heads * reached),
        }
        estimates["mean_excess"][0][:, lengths == 1] = 0  # undefined for one token, where the table gets NaN below
        parts, wholes = (np.concatenate(side, axis=1) for side in zip(*estimates.values(), strict=True))
        low, high = (np.split(ends, len(estimates)) for ends in ratio_intervals(parts, wholes, resampling))
        columns = {
            "threshold": self.thresholds[i],
            "n_tokens": lengths,
            "prompts": prompts.astype(int),
            "sink_fraction": fraction.sum(0) / prompts,
            "mean_score": mean.sum(0) / prompts,
            "null_score": null,
            "mean_excess": excess_score(mean.sum(0) / prompts, null),
            "first_layer_sinks": first.sum(0).astype(int),
            "p_later_given_first": shares["p_later_given_first"],
            "p_later": shares["p_later"],
        }
        for k, name in enumerate(estimates):
            columns |= {f"{name}_low": low[k], f"{name}_high": high[k]}
        table = pd.DataFrame(columns)
        table.loc[table["n_tokens"] == 1, ["mean_excess_low", "mean_excess_high"]] = np.nan
        return table


def weakening(
    first: np.ndarray,
    both: np.ndarray,
    later: np.ndarray,
    reached: np.ndarray,
    lengths: np.ndarray,
    cells: tuple[int, int],
    resampling: Resampling,
) -> dict[str, float]:
    """The length at which the correlation falls, and from what to what.

    The correlation over all lengths is split in two where the two means, weighted by first-layer sinks, leave the
    least squares: the estimate of a single change point (Hinkley, Biometrika 57, 1970; Bai, Journal of Time Series
    Analysis 15, 1994). `length` is the first length of the second part. Its interval, and that of the fall, come
    from repeating the whole estimate on resampled prompts. `first`, `both`, `later`, `reached` (prompt, length);
    `cells`: later layers, heads. `excess_*` is the same beyond the base rate: `excess_fall` is what falls of the
    correlation that does not fall of the base rate.
    """
    layers, heads = cells
    estimate = _change(*(a.sum(0, dtype=float, keepdims=True) for a in (first, both, later, reached)), layers, heads)
    defined = np.flatnonzero(first.sum(0)) if layers else np.array([], int)
    row = {
        "prompts": len(first),
        "length": np.nan,
        "length_low": np.nan,
        "length_high": np.nan,
        **{name: float(estimate[name][0]) for name in _LEVELS},
        **dict.fromkeys(("fall_low", "fall_high", "excess_fall_low", "excess_fall_high"), np.nan),
        "draws": 0,
        "last_length": lengths[defined[-1]] if len(defined) else np.nan,
    }
    if np.isnan(estimate["split"][0]):
        return row
    row["length"] = lengths[int(estimate["split"][0])]
    if (first.sum(1) > 0).sum() < 2:
        return row
    parts = [
        _change(draw @ first, draw @ both, draw @ later, draw @ reached, layers, heads)
        for draw in resamples(len(first), resampling, width=4 * first.shape[1])
    ]
    split, *falls = (np.concatenate([part[name] for part in parts]) for name in ("split", "fall", "excess_fall"))
    kept = ~np.isnan(split)
    row["draws"] = int(kept.sum())
    # A length is a whole number, so the interval ends at resampled values and not between two of them.
    low, high = np.quantile(split[kept], [0.025, 0.975], method="inverted_cdf").astype(int)
    row["length_low"], row["length_high"] = lengths[low], lengths[high]
    for name, fall in zip(("fall", "excess_fall"), falls, strict=True):
        row[f"{name}_low"], row[f"{name}_high"] = percentiles(fall)
    return row


_LEVELS = ("before", "after", "fall", "excess_before", "excess_after", "excess_fall")


def _change(
    first: np.ndarray, both: np.ndarray, later: np.ndarray, reached: np.ndarray, layers: int, heads: int
) -> dict[str, np.ndarray]:
    """Where the correlation (row, length) is best split, and its levels before and after; NaN where it cannot be."""
    weight, follow = layers * first, both
    base = np.divide(later, layers * heads * reached, out=np.zeros_like(later), where=reached > 0) if layers else later
    expected = weight * base
    sums = np.cumsum(np.stack([weight, follow, expected]), axis=2)  # (3, row, length)
    before, after = sums[:, :, :-1], sums[:, :, -1:] - sums[:, :, :-1]
    splittable = (before[0] > 0) & (after[0] > 0)
    gain = np.full(before[0].shape, -np.inf)
    np.divide(before[1] ** 2, before[0], out=gain, where=splittable)
    gain += np.divide(after[1] ** 2, after[0], out=np.zeros_like(gain), where=splittable)
    found = splittable.any(1)
    at = np.where(found, gain.argmax(1) if gain.shape[1] else 0, 0)
    result = {name: np.full(len(first), np.nan) for name in ("split", *_LEVELS)}
    rows = np.flatnonzero(found)
    for name, part in (("before", before), ("after", after)):
        weights, follows, expecteds = part[:, rows, at[rows]]
        result[name][rows] = follows / weights
        result[f"excess_{name}"][rows] = (follows - expecteds) / weights
    result["split"][rows] = at[rows] + 1
    result["fall"] = result["before"] - result["after"]
    result["excess_fall"] = result["excess_before"] - result["excess_after"]
    return result
