"""Trained models against the same architecture with random weights, prompt by prompt."""

import numpy as np
import pandas as pd

from sinkstudy.stats.resampling import Resampling, ratio_intervals

_COLUMNS = (
    "model control threshold n_tokens prompts sink_fraction control_sink_fraction difference ci_low ci_high "
    "mean_excess control_mean_excess excess_difference excess_low excess_high"
)


def control_table(
    lengths: pd.DataFrame, pairs: list[tuple[str, str]], at: list[int], resampling: Resampling
) -> pd.DataFrame:
    """A row per pair, threshold and length of `at`: sink fraction and mean excess of both, and their differences.

    `lengths`: the length tables of all models. Intervals of the differences are bootstrapped over the prompts that
    both models saw, paired by prompt.
    """
    rows = []
    for model, control in pairs:
        keys = ["prompt", "threshold", "n_tokens"]
        sides = [lengths[(lengths["model"] == name) & lengths["n_tokens"].isin(at)] for name in (model, control)]
        both = sides[0].merge(sides[1], on=keys, suffixes=("", "_control"))
        for (threshold, n), part in both.groupby(["threshold", "n_tokens"]):
            differences = np.stack([part[c] - part[f"{c}_control"] for c in ("sink_fraction", "mean_excess")], axis=1)
            low, high = ratio_intervals(differences, np.ones_like(differences), resampling)
            rows.append(
                {
                    "model": model,
                    "control": control,
                    "threshold": threshold,
                    "n_tokens": n,
                    "prompts": len(part),
                    "sink_fraction": part["sink_fraction"].mean(),
                    "control_sink_fraction": part["sink_fraction_control"].mean(),
                    "difference": differences[:, 0].mean(),
                    "ci_low": low[0],
                    "ci_high": high[0],
                    "mean_excess": part["mean_excess"].mean(),
                    "control_mean_excess": part["mean_excess_control"].mean(),
                    "excess_difference": differences[:, 1].mean(),
                    "excess_low": low[1],
                    "excess_high": high[1],
                }
            )
    return pd.DataFrame(rows, columns=_COLUMNS.split())
