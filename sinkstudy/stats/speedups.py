"""Speedups with an interval: several ways to compute the same thing, timed in turn, round by round.

A randomized block design (Montgomery, Design and Analysis of Experiments, chapter 4): on the logarithmic scale a time
is the effect of its round, in which drift of the machine cancels, plus that of its way, plus scatter. Scatter is pooled
over ways and rounds, so that a few rounds of many ways already show how far a ratio can be trusted.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import t


@dataclass(frozen=True)
class Speedups:
    """`ratio`: speed over the reference, (way,), the geometric mean over rounds. `error`: the standard error of the
    logarithm of each ratio, with `freedom` degrees of freedom; NaN where there are fewer than two rounds or ways."""

    ratio: np.ndarray
    error: float
    freedom: int

    @property
    def factor(self) -> float:
        """A 95% interval reaches from a ratio over this to a ratio times this."""
        return float(np.exp(t.ppf(0.975, self.freedom) * self.error)) if self.freedom else float("nan")


def speedups(seconds: np.ndarray, reference: int) -> Speedups:
    """`seconds`: (round, way), all positive; the ways of a round were timed in random order. `reference`: a way."""
    rounds, ways = seconds.shape
    logs, freedom = np.log(seconds), (rounds - 1) * (ways - 1)
    effects = logs.mean(0)
    if not freedom:
        return Speedups(np.exp(effects[reference] - effects), float("nan"), 0)
    scatter = logs - logs.mean(1, keepdims=True) - effects + logs.mean()
    error = np.sqrt(2 / rounds * (scatter**2).sum() / freedom)
    return Speedups(np.exp(effects[reference] - effects), float(error), freedom)


def corrected_low(ratio: ArrayLike, low: ArrayLike, freedom: ArrayLike, comparisons: int) -> np.ndarray:
    """The lower end that one-sided intervals need so that, of `comparisons`, all hold with 95% (Bonferroni).

    `low`: the lower end of the two-sided 95% interval of each ratio, from which its standard error follows.
    """
    wider = t.ppf(1 - 0.05 / comparisons, freedom) / t.ppf(0.975, freedom)
    return np.asarray(ratio) * (np.asarray(low) / np.asarray(ratio)) ** wider


def with_sure_speedup(timed: pd.DataFrame, comparisons: int) -> pd.DataFrame:
    """Timed ways with `sure_speedup`, the lower end corrected for so many comparisons, and `credited`: no more of it
    than the ceiling allows, which baselines do not have. Eager attention is not bound by what SDPA would save."""
    sure = corrected_low(timed["speedup_vs_sdpa"], timed["speedup_low"], timed["degrees_of_freedom"], comparisons)
    timed = timed.assign(sure_speedup=sure)
    ceiling = timed["ceiling"].where(timed["heads_replaced"] > 0, np.inf)
    return timed.assign(credited=timed["sure_speedup"].clip(upper=ceiling))


def pareto_front(benchmark: pd.DataFrame) -> pd.DataFrame:
    """The rows of one cell (phase, length, batch) that no other row beats: none is both faster and milder, or equal in
    one and better in the other. Rows without a speedup or a KL divergence are left out."""
    rows = benchmark.dropna(subset=["speedup_vs_sdpa", "kl"])
    speed, cost = rows["speedup_vs_sdpa"].to_numpy(), rows["kl"].to_numpy()
    faster, milder = speed[None] - speed[:, None], cost[:, None] - cost[None]  # (row, other row)
    beaten = (faster >= 0) & (milder >= 0) & (faster + milder > 0)
    return rows[~beaten.any(axis=1)]
