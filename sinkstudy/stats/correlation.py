"""Does a sink in the first layer go on being a sink in later layers at the same head index?

The original study's correlation is the mean, over heads that are sinks in the first layer, of the fraction of later
layers in which the same index is a sink. A high base rate of later sinks makes it high by itself, so every row
carries the base rate, the lift over it, phi, an interval and a permutation p-value.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from sinkstudy.stats.reduced import Reduced
from sinkstudy.stats.relabelling import drawn_p_value, exact_p_values
from sinkstudy.stats.resampling import Resampling, ratio, ratio_intervals, ratio_intervals_of, sums


def correlate(is_sink: np.ndarray, resampling: Resampling) -> dict[str, float | int]:
    """First-layer-to-later-layer statistics of sink decisions (prompt, layer, head) bool.

    Values that are undefined (no first-layer sinks, no later sinks, fewer than two layers) are NaN. The interval
    is a 95% percentile bootstrap over prompts, undefined unless two have first-layer sinks. The p-value is that of
    the observed statistic when head labels are permuted within every later layer, the same way for all prompts:
    exact for one prompt, otherwise the share of random permutations that reach it, the observed order among them.
    """
    return {name: values[0] for name, values in _pooled([is_sink[:, None]], resampling).items()}


def correlation_tables(
    reduced: Reduced, model: str, lengths: Sequence[int], resampling: Resampling, curves: pd.DataFrame
) -> Iterator[pd.DataFrame]:
    """Rows per prompt at its whole length, in parts of bounded size; then per set and over all (prompt `all`), and over
    all at each of `lengths`.

    In rows over several prompts at their own lengths `n_tokens` is empty; with a length, prompts of at least that
    many tokens count, cut to it. The interval of a row with a length is that of `curves`, the table of curves of the
    same prompts.
    """
    every = reduced.reaching(None)
    for block in reduced.blocks(every):
        yield _prompt_rows(reduced, model, block)
    pools = [(name, None, members) for name, members in reduced.members()] + [("all", None, every)]
    pools += [("all", n, members) for n in lengths if len(members := reduced.reaching(n))]
    of_all, parts = curves[curves["set"] == "all"], []
    for name, n, members in pools:
        decisions = (reduced.is_sink(block, n) for block in reduced.blocks(members))
        pooled = _pooled(decisions, resampling, intervals=n is None)
        if n is not None:
            at = of_all[of_all["n_tokens"] == n]
            pooled |= {f"ci_{end}": at[f"p_later_given_first_{end}"].to_numpy() for end in ("low", "high")}
        where = {"model": model, "set": name, "prompt": "all", "n_tokens": n, "threshold": reduced.thresholds}
        parts.append(pd.DataFrame(where | pooled).assign(prompts=len(members)))
    yield pd.concat(parts, ignore_index=True).astype({"n_tokens": "Int64"})


def _prompt_rows(reduced: Reduced, model: str, block: np.ndarray) -> pd.DataFrame:
    """A row per prompt and threshold."""
    is_sink, times = reduced.is_sink(block, None), len(reduced.thresholds)
    first, both = _overlaps(is_sink)  # (prompt, threshold)
    layers, heads = is_sink.shape[2] - 1, is_sink.shape[3]
    later = is_sink[:, :, 1:].sum((2, 3))
    shares = contingency(layers * first, both, later, layers * heads)
    return pd.DataFrame(
        {
            "model": model,
            "set": np.repeat(reduced.sets[block], times),
            "prompt": np.repeat(reduced.prompts[block], times),
            "n_tokens": pd.array(np.repeat(reduced.n_tokens[block], times), dtype="Int64"),
            "threshold": np.tile(reduced.thresholds, len(block)),
            "first_layer_sinks": first.ravel(),
            **{name: values.ravel() for name, values in shares.items()},
            "ci_low": np.nan,
            "ci_high": np.nan,
            "p_value": reduced.rows("p_value", block).ravel(),
            "prompts": 1,
        }
    )


def layer_pair_table(reduced: Reduced, model: str, lengths: Sequence[int], resampling: Resampling) -> pd.DataFrame:
    """The same of any two layers: if a head is a sink in layer a, is the head with the same index a sink in layer b?

    A row per length (empty: whole prompts), threshold and ordered pair of different layers, over all prompts.
    """
    parts = [
        _pair_rows(reduced, model, n, i, resampling)
        for n in (None, *lengths)
        if len(reduced.reaching(n))
        for i in range(len(reduced.thresholds))
    ]
    return pd.concat(parts, ignore_index=True)


def _pair_rows(reduced: Reduced, model: str, n: int | None, i: int, resampling: Resampling) -> pd.DataFrame:
    (count, heads), members = reduced.shape, reduced.reaching(n)
    a, b = np.nonzero(~np.eye(count, dtype=bool))

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Heads that are sinks in both layers of a pair, and in its first, (prompt, pair) each."""
        for block in reduced.blocks(members):
            is_sink = reduced.is_sink(block, n)[:, i].astype(np.float32)  # (prompt, layer, head)
            both = is_sink @ is_sink.swapaxes(1, 2)  # a layer paired with itself counts its sinks
            yield both[:, a, b], both[:, a, a]

    shared, given = sums(blocks)
    later = given.reshape(count, -1)[:, :1].ravel()[b]  # of the second layer, which is the first of other pairs
    shares = contingency(given, shared, later, len(members) * heads)
    low, high = ratio_intervals_of(blocks, resampling)
    return pd.DataFrame(
        {
            "model": model,
            "n_tokens": pd.array([n] * len(a), dtype="Int64"),
            "threshold": reduced.thresholds[i],
            "layer_a": reduced.layers[a],
            "layer_b": reduced.layers[b],
            "prompts": len(members),
            "sinks_a": given.astype(int),
            "p_b_given_a": shares["p_later_given_first"],
            "p_b": shares["p_later"],
            "lift": shares["lift"],
            "phi": shares["phi"],
            "ci_low": low,
            "ci_high": high,
        }
    )


def contingency(first: np.ndarray, both: np.ndarray, later: np.ndarray, cells: int) -> dict[str, np.ndarray]:
    """Shares and association from counts of so many cells: those that are sinks first, first and later, and later.

    Undefined values are NaN: a share of nothing, a lift over 0, phi (Pearson's correlation) of a constant.
    """
    first, both, later = (np.asarray(a, float) for a in (first, both, later))
    given, base = ratio(both, first), ratio(later, cells)
    spread = first * (cells - first) * later * (cells - later)
    return {
        "p_later_given_first": given,
        "p_later": base,
        "lift": ratio(given, base),
        "phi": ratio(cells * both - first * later, np.sqrt(spread)),
    }


def _pooled(decisions: Iterable[np.ndarray], resampling: Resampling, intervals: bool = True) -> dict[str, np.ndarray]:
    """The statistics at each threshold over all prompts of `decisions`, (prompt, threshold, layer, head) bool each, in
    the order of the study. Prompts are reduced to counts, so that memory hardly grows with their number."""
    counts = []  # (prompt, threshold, 2): first-layer sinks, and later sinks that follow
    later_sinks: np.ndarray | int = 0  # (threshold,)
    pairs: np.ndarray | int = 0  # (threshold, layer - 1, head, head), see `drawn_p_value`
    for is_sink in decisions:
        first, later = is_sink[:, :, 0], is_sink[:, :, 1:]
        counts.append(np.stack(_overlaps(is_sink), axis=-1).astype(np.uint16))
        later_sinks = later_sinks + later.sum((0, 2, 3))
        levels, layers, heads = later.shape[1:]
        left = first.transpose(1, 2, 0).astype(np.float32)  # (threshold, head, prompt)
        right = later.transpose(1, 0, 2, 3).reshape(levels, len(later), layers * heads).astype(np.float32)
        pairs = pairs + (left @ right).reshape(levels, heads, layers, heads).transpose(0, 2, 1, 3).astype(np.int32)
    counts = np.concatenate(counts).astype(int)
    low, high = np.full((2, levels), np.nan)
    if intervals:
        low, high = ratio_intervals(counts[..., 1], layers * counts[..., 0], resampling)
    first, both = counts.sum(0).T  # (threshold,)
    shares = contingency(layers * first, both, later_sinks, len(counts) * layers * heads)
    if len(counts) == 1:
        p_value = exact_p_values(is_sink)[0]
    else:
        p_value = [drawn_p_value(pairs[i], resampling) if layers and first[i] else np.nan for i in range(levels)]
    return {"first_layer_sinks": first, **shares, "ci_low": low, "ci_high": high, "p_value": np.array(p_value)}


def _overlaps(is_sink: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First-layer sinks, and later sinks at their head indices: (..., layer, head) bool to (...) int each."""
    first, later = is_sink[..., :1, :], is_sink[..., 1:, :]
    return first.sum((-2, -1)), (first & later).sum((-2, -1))
