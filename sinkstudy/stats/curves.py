"""Sink fraction, excess and correlation at every prefix length: of each prompt, and over prompts with intervals.

A length counts the prompts of at least that many tokens, cut to it. Sink fraction and excess are means over prompts;
the correlation pools first-layer sinks.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd

from sinkstudy.stats.reduced import Reduced
from sinkstudy.stats.resampling import Blocks, Resampling, drawn_sums, draws, percentiles, ratio, sums
from sinkstudy.stats.scores import excess_score, null_score, prompt_columns

_LENGTHS_AT_ONCE = 1 << 9
_NUMBERS_AT_ONCE = 1 << 20


def length_tables(reduced: Reduced, model: str) -> Iterator[pd.DataFrame]:
    """One row per prompt, threshold and prefix length, in the order of the study, in parts of bounded size.

    `sink_fraction` is that of all heads; `mean_score` and `mean_excess` are averages over them.
    """
    times, cells = len(reduced.thresholds), np.prod(reduced.shape)
    for block in reduced.blocks(reduced.reaching(None)):
        ends = reduced.n_tokens[block]
        n_tokens = np.concatenate([np.tile(np.arange(1, n + 1), times) for n in ends])
        mean = np.concatenate([np.tile(one, times) for one in reduced.of_each("mean_score", block)])
        sinks = np.concatenate([one[:, :, 0].T.ravel() for one in reduced.of_each("counts", block)])
        null = null_score(n_tokens)
        yield pd.DataFrame(
            prompt_columns(reduced, model, block, times * ends)
            | {
                "n_tokens": n_tokens,
                "threshold": np.concatenate([np.repeat(reduced.thresholds, n) for n in ends]),
                "sink_fraction": sinks / cells,
                "mean_score": mean,
                "null_score": null,
                "mean_excess": excess_score(mean, null),
            }
        )


def curve_table(reduced: Reduced, model: str, resampling: Resampling) -> pd.DataFrame:
    """Rows per set (and `all`), threshold and length."""
    parts = []
    for name, members in [("all", reduced.reaching(None)), *reduced.members()]:
        longest = int(reduced.n_tokens[members].max())
        for i, threshold in enumerate(reduced.thresholds):
            about = {"model": model, "set": name, "threshold": threshold}
            for start in range(0, longest, _LENGTHS_AT_ONCE):
                lengths = np.arange(start + 1, min(start + _LENGTHS_AT_ONCE, longest) + 1)
                parts.append(pd.DataFrame(about | _columns(reduced, members, i, lengths, resampling)))
    return pd.concat(parts, ignore_index=True)


def _columns(
    reduced: Reduced, members: np.ndarray, i: int, lengths: np.ndarray, resampling: Resampling
) -> dict[str, np.ndarray]:
    """The curves at consecutive `lengths` and the threshold of index `i`."""
    layers, heads = reduced.shape[0] - 1, reduced.shape[1]
    null = null_score(lengths)

    def blocks() -> Iterator[list[np.ndarray]]:
        counted = _counts(reduced, members, i, lengths)
        for block, (first, both, later, reached) in zip(reduced.blocks(members), counted, strict=True):
            mean = _padded(reduced, "mean_score", block, lengths)
            fraction, excess = (first + later) / ((layers + 1) * heads), excess_score(mean, null) * reached
            yield [fraction, excess, both, later, reached, first, mean, first > 0]

    def ratios(sums: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        fraction, excess, both, later, prompts, first = sums
        return {
            "sink_fraction": ratio(fraction, prompts),
            "mean_excess": ratio(excess, prompts * (lengths > 1)),  # undefined for one token
            "p_later_given_first": ratio(both, layers * first),
            "p_later": ratio(later, layers * heads * prompts),
        }

    *added, mean, with_sinks = sums(blocks)
    prompts, first = added[4:]
    found = ratios(added)
    columns = {
        "n_tokens": lengths,
        "prompts": prompts.astype(int),
        "sink_fraction": found["sink_fraction"],
        "mean_score": mean / prompts,
        "null_score": null,
        "mean_excess": excess_score(mean / prompts, null),
        "first_layer_sinks": first.astype(int),
        "p_later_given_first": found["p_later_given_first"],
        "p_later": found["p_later"],
    }
    drawn = drawn_sums(lambda: (block[:6] for block in blocks()), draws(len(members), resampling))
    for name, values in ratios(drawn).items():
        enough = (with_sinks if name == "p_later_given_first" else prompts) > 1
        ends = np.full((2, len(lengths)), np.nan)
        ends[:, enough] = percentiles(values[:, enough])
        columns |= {f"{name}_low": ends[0], f"{name}_high": ends[1]}
    return columns


def weakening_table(reduced: Reduced, model: str, resampling: Resampling) -> pd.DataFrame:
    """A row per threshold over all prompts, see `weakening`."""
    every, rows = reduced.reaching(None), []
    layers, heads = reduced.shape
    for i, threshold in enumerate(reduced.thresholds):
        lengths = np.arange(1, reduced.n_tokens.max() + 1)
        # Elsewhere uniform attention is itself a sink. The null score only falls with length.
        lengths = lengths[null_score(lengths) < threshold]
        blocks = partial(_counts, reduced, every, i, lengths)
        found = weakening(blocks, len(every), lengths, (layers - 1, heads), resampling)
        rows.append({"model": model, "threshold": threshold, **found})
    return pd.DataFrame(rows).astype(dict.fromkeys(("length", "length_low", "length_high", "last_length"), "Int64"))


def _counts(reduced: Reduced, members: np.ndarray, i: int, lengths: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """First-layer sinks, followers, sinks in later layers (uint16) and whether a prompt is that long (bool), (prompt,
    length) each.

    Of consecutive `lengths`, at the threshold of index `i`; beyond a prompt's end all are 0.
    """
    for block in reduced.blocks(members):
        sinks, first, both = np.moveaxis(_padded(reduced, "counts", block, lengths, i), -1, 0)
        yield first, both, sinks - first, reduced.n_tokens[block][:, None] >= lengths


def _padded(reduced: Reduced, name: str, block: np.ndarray, lengths: np.ndarray, *at: int) -> np.ndarray:
    """What is stored by token at consecutive `lengths`, (prompt, length, ...), 0 beyond a prompt's end; `at`: indices
    of the axes after that of the tokens."""
    n_tokens = reduced.n_tokens[block][:, None]
    values = reduced.rows(name, block)[(slice(None), *at)]
    places, reached = np.cumsum(n_tokens)[:, None] - n_tokens + lengths - 1, n_tokens >= lengths
    padded = np.zeros((*reached.shape, *values.shape[1:]), values.dtype)
    padded[reached] = values[places[reached]]
    return padded


def weakening(
    blocks: Blocks, prompts: int, lengths: np.ndarray, cells: tuple[int, int], resampling: Resampling
) -> dict[str, float]:
    """The length at which the correlation falls, and from what to what.

    The correlation over all lengths is split in two where the two means, weighted by first-layer sinks, leave the
    least squares: the estimate of a single change point (Hinkley, Biometrika 57, 1970; Bai, Journal of Time Series
    Analysis 15, 1994). `length` is the first length of the second part. Its interval, and that of the fall, come
    from repeating the whole estimate on resampled prompts. `blocks`: first-layer sinks, later sinks that follow them,
    all later sinks, and whether a prompt is so long, (prompt, length) each; `cells`: later layers, heads. `excess_*` is
    the same beyond the base rate: `excess_fall` is what falls of the correlation that does not fall of the base rate.
    """
    layers, heads = cells
    total = sums(blocks)
    estimate = _change(*(one[None] for one in total), layers, heads)
    defined = np.flatnonzero(total[0]) if layers else np.array([], int)
    row = {
        "prompts": prompts,
        **dict.fromkeys(("length", "length_low", "length_high"), np.nan),
        **{name: estimate[name][0] for name in _LEVELS},
        **dict.fromkeys(("fall_low", "fall_high", "excess_fall_low", "excess_fall_high"), np.nan),
        "draws": 0,
        "last_length": lengths[defined[-1]] if len(defined) else np.nan,
    }
    if np.isnan(estimate["split"][0]):
        return row
    row["length"] = lengths[int(estimate["split"][0])]
    if sum((first.sum(1) > 0).sum() for first, *_ in blocks()) < 2:
        return row
    at_once = max(1, _NUMBERS_AT_ONCE // (4 * len(lengths)))
    drawn = pd.concat(
        pd.DataFrame(_change(*drawn_sums(blocks, draws(prompts, resampling)[start : start + at_once]), layers, heads))
        for start in range(0, resampling.bootstrap, at_once)
    )
    split = drawn["split"].dropna()
    row["draws"] = len(split)
    # A length is a whole number, so the interval ends at resampled values and not between two of them.
    low, high = np.quantile(split, [0.025, 0.975], method="inverted_cdf").astype(int)
    row["length_low"], row["length_high"] = lengths[low], lengths[high]
    for name in ("fall", "excess_fall"):
        row[f"{name}_low"], row[f"{name}_high"] = percentiles(drawn[name].to_numpy())
    return row


_LEVELS = ("before", "after", "fall", "excess_before", "excess_after", "excess_fall")


def _change(
    first: np.ndarray, both: np.ndarray, later: np.ndarray, reached: np.ndarray, layers: int, heads: int
) -> dict[str, np.ndarray]:
    """Where the correlation (row, length) is best split, and its levels before and after; NaN where it cannot be."""
    weight = layers * first
    expected = weight * np.nan_to_num(ratio(later, layers * heads * reached))
    sums = np.cumsum([weight, both, expected], axis=2)
    before = np.pad(sums, ((0, 0), (0, 0), (1, 0)))  # of the first 0, 1, ... lengths, (3, row, length + 1)
    after = before[:, :, -1:] - before
    gain = ratio(before[1] ** 2, before[0]) + ratio(after[1] ** 2, after[0])  # undefined where a side has no sinks
    split = np.nan_to_num(gain, nan=-1).argmax(1)  # Gains are not negative, and 0 lengths are no side.
    found = split > 0
    result = {"split": np.where(found, split, np.nan)}
    for name, part in (("before", before), ("after", after)):
        weights, follows, expecteds = np.take_along_axis(part, split[None, :, None], axis=2)[:, :, 0]
        result[name] = ratio(follows, weights * found)
        result[f"excess_{name}"] = ratio(follows - expecteds, weights * found)
    result["fall"] = result["before"] - result["after"]
    result["excess_fall"] = result["excess_before"] - result["excess_after"]
    return result
