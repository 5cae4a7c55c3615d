"""Which timed ways of running a model no other way beats."""

import pandas as pd


def pareto_front(benchmark: pd.DataFrame) -> pd.DataFrame:
    """The rows of one cell (phase, length, batch) that no other row beats: none is both faster and milder, or equal in
    one and better in the other. Rows without a speedup or a KL divergence are left out."""
    rows = benchmark.dropna(subset=["speedup_vs_sdpa", "kl"])
    speed, cost = rows["speedup_vs_sdpa"].to_numpy(), rows["kl"].to_numpy()
    faster, milder = speed[None] - speed[:, None], cost[:, None] - cost[None]  # (row, other row)
    beaten = (faster >= 0) & (milder >= 0) & (faster + milder > 0)
    return rows[~beaten.any(axis=1)]
