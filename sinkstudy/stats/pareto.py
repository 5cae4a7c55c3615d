"""Which timed ways of running a model no other way beats, and how far timings of the same computation differ."""

import pandas as pd


def pareto_front(benchmark: pd.DataFrame) -> pd.DataFrame:
    """The rows of one cell (phase, length, batch) that no other row beats: none is both faster and milder, or equal in
    one and better in the other. Rows without a speedup or a KL divergence are left out."""
    rows = benchmark.dropna(subset=["speedup_vs_sdpa", "kl"])
    speed, cost = rows["speedup_vs_sdpa"].to_numpy(), rows["kl"].to_numpy()
    faster, milder = speed[None] - speed[:, None], cost[:, None] - cost[None]  # (row, other row)
    beaten = (faster >= 0) & (milder >= 0) & (faster + milder > 0)
    return rows[~beaten.any(axis=1)]


def timing_noise(benchmark: pd.DataFrame) -> pd.Series:
    """Per row, the factor by which SDPA differs from itself when it is timed twice in that cell (phase, length, batch).

    Rows that replace nothing, other than eager, repeat SDPA's computation. Where a cell has only SDPA's own row, the
    spread of SDPA's rounds stands for it: 1 and the interquartile range over the median.
    """
    cells = [benchmark[name] for name in ("phase", "n_tokens", "batch")]
    sdpa = (benchmark["strategy"] == "sdpa") & (benchmark["policy"] == "none")
    again = (benchmark["heads_replaced"] == 0) & (benchmark["strategy"] != "eager") & ~sdpa
    high = benchmark["speedup_high"] if "speedup_high" in benchmark else benchmark["speedup_vs_sdpa"]
    measured = pd.concat([high, 1 / benchmark["speedup_low"]], axis=1).max(axis=1).where(again)
    spread = (1 + benchmark["iqr_s"] / benchmark["median_s"]).where(sdpa)
    return measured.groupby(cells).transform("max").fillna(spread.groupby(cells).transform("max"))
