"""Where in the model the sinks are: means over prompts per layer, and per head at every prefix length."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from sinkstudy.resampling import Resampling, ratio_intervals
from sinkstudy.scores import scored
from sinkstudy.store import Capture


def layer_table(scores: pd.DataFrame, resampling: Resampling) -> pd.DataFrame:
    """A row per layer with its mean sink score over heads and prompts, from one model's score table.

    `score_low`, `score_high`: 95% percentile bootstrap over prompts, NaN for a single prompt.
    """
    mean = scores.pivot_table(index="prompt", columns="layer", values="sink_score", sort=False)  # over heads
    low, high = ratio_intervals(mean.to_numpy(), np.ones(mean.shape), resampling)
    return pd.DataFrame(
        {
            "model": scores["model"].iloc[0],
            "layer": mean.columns,
            "heads": scores["head"].nunique(),
            "prompts": len(mean),
            "mean_tokens": scores.groupby("prompt")["n_tokens"].first().mean(),
            "mean_sink_score": mean.mean().to_numpy(),
            "score_low": low,
            "score_high": high,
            "mean_null_score": scores.groupby("prompt")["null_score"].first().mean(),
            "sink_fraction": scores.groupby("layer")["is_sink"].mean()[mean.columns].to_numpy(),
        }
    )


def head_curves(captures: Iterable[Capture]) -> tuple[np.ndarray, np.ndarray]:
    """Mean score of every head at every prefix length, (layer, head, query), over the prompts that reach it.

    The second array (query,) counts these prompts.
    """
    total, count = np.zeros((1, 1, 0)), np.zeros(0, int)
    for _, _, scores in scored(captures):  # (prompt, layer, head, query)
        n = scores.shape[-1]
        if n > len(count):
            wider = np.zeros((*scores.shape[1:3], n))
            wider[..., : len(count)] = total
            total, count = wider, np.pad(count, (0, n - len(count)))
        total[..., :n] += scores.sum(0)
        count[:n] += len(scores)
    return total / count, count
