"""Where in the model the sinks are: means over prompts per layer, and per head at every prefix length."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from sinkstudy.measures.captured import Capture
from sinkstudy.stats.resampling import Resampling, ratio_intervals
from sinkstudy.stats.scores import scored

MIN_TOKENS = 24  # on shorter prompts uniform attention itself scores too high to judge a head by


def layer_table(scores: Iterable[pd.DataFrame], resampling: Resampling) -> pd.DataFrame:
    """A row per layer with its mean sink score over heads and prompts, from the parts of one model's score table.

    `score_low`, `score_high`: 95% percentile bootstrap over prompts, NaN for a single prompt. Of each prompt
    only its mean scores per layer, its length and its null score are kept.
    """
    means, prompts, sinks = [], [], []
    for part in scores:
        means.append(part.pivot_table(index="prompt", columns="layer", values="sink_score", sort=False))  # over heads
        prompts.append(part.groupby("prompt")[["n_tokens", "null_score"]].first())
        sinks.append(part.groupby("layer")["is_sink"].sum())
        model, heads = part["model"].iloc[0], part["head"].nunique()
    mean, of_prompts = pd.concat(means), pd.concat(prompts).mean()
    low, high = ratio_intervals(mean.to_numpy(), np.ones(mean.shape), resampling)
    return pd.DataFrame(
        {
            "model": model,
            "layer": mean.columns,
            "heads": heads,
            "prompts": len(mean),
            "mean_tokens": of_prompts["n_tokens"],
            "mean_sink_score": mean.mean().to_numpy(),
            "score_low": low,
            "score_high": high,
            "mean_null_score": of_prompts["null_score"],
            "sink_fraction": sum(sinks)[mean.columns].to_numpy() / (heads * len(mean)),
        }
    )


def long_prompt_table(scores: Iterable[pd.DataFrame], min_tokens: int) -> pd.DataFrame:
    """A row per model and head over its prompts of `min_tokens` tokens or more, from the parts of score tables.

    `sink_share` is the share of these prompts in which the head is a sink; the other columns are its lowest sink score,
    and its lowest and highest excess score.
    """
    wanted = {
        "prompts": ("is_sink", "count"),
        "sinks": ("is_sink", "sum"),
        "least_score": ("sink_score", "min"),
        "least_excess": ("excess_score", "min"),
        "best_excess": ("excess_score", "max"),
    }
    again = {name: (name, "sum" if how == "count" else how) for name, (_, how) in wanted.items()}
    by, table = ["model", "layer", "head"], None
    for part in scores:
        added = part[part["n_tokens"] >= min_tokens].groupby(by, sort=False).agg(**wanted)
        table = added if table is None else pd.concat([table, added]).groupby(by, sort=False).agg(**again)
    table.insert(0, "sink_share", table.pop("sinks") / table["prompts"])
    return table.reset_index()


def head_curves(captures: Iterable[Capture]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The lengths that all prompts know which reach them; the mean score of every head there, (layer, head, length);
    and the number of these prompts."""
    total, prompts = np.zeros((1, 1, 0)), np.zeros((2, 0), int)  # the second: those that know a length, that reach it
    for _, prefixes in scored(captures):
        layers, heads = prefixes.scores.shape[1:3]
        n, longest = prefixes.n_tokens, prompts.shape[1]
        if n > longest:
            wider = np.zeros((layers, heads, n))
            wider[..., :longest] = total
            total, prompts = wider, np.pad(prompts, ((0, 0), (0, n - longest)))
        total[..., prefixes.lengths - 1] += prefixes.scores.sum(0)
        prompts[0, prefixes.lengths - 1] += len(prefixes.members)
        prompts[1, :n] += len(prefixes.members)
    common = np.flatnonzero(prompts[0] == prompts[1])
    return common + 1, total[..., common] / prompts[0, common], prompts[0, common]
