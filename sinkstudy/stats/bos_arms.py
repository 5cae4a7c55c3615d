"""What a beginning-of-sequence token changes: the same prompts without it, with it, and with two."""

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from sinkstudy.measures.captured import Capture
from sinkstudy.stats.prefixes import Prefixes
from sinkstudy.stats.resampling import Resampling, ratio_intervals
from sinkstudy.stats.scores import POSITIONS, excess_score, null_score, strongest_position

_MEASURES = ("sink_fraction", "mean_score", "mean_excess")


def arm_rows(
    captures: Iterable[Capture], arm: str, threshold: float, lengths: list[int]
) -> Iterator[dict[str, object]]:
    """A row per prompt of one arm and length of `lengths` that it reaches, over all heads.

    `strongest_0` to `strongest_3`: the share of heads for which that position draws most of the attention of the
    queries after the fourth.
    """
    for capture in captures:
        prefixes = Prefixes([capture])
        for n in (n for n in lengths if n <= capture.n_tokens):
            at, (strongest, _) = prefixes.at(n), strongest_position(prefixes, n)
            known = strongest[~np.isnan(strongest)]
            yield {
                "arm": arm,
                "first_token": capture.tokens[0],
                "prompt": capture.prompt,
                "n_tokens": n,
                "sink_fraction": (at >= threshold).mean(),
                "mean_score": at.mean(),
                "mean_excess": excess_score(at, null_score(n)).mean(),
                **{f"strongest_{p}": (known == p).mean() if len(known) else np.nan for p in range(POSITIONS)},
            }


def bos_arm_table(rows: Iterable[dict[str, object]], model: str, resampling: Resampling) -> pd.DataFrame:
    """A row per arm and length, over the prompts that reach the length in every arm, from the rows of all arms.

    `first_token`: what all prompts begin with, empty where they differ. Means over these prompts with 95% bootstrap
    intervals over prompts; `excess_difference`: mean excess less that of the first arm, prompt by prompt.
    """
    by_prompt, table = pd.DataFrame(rows), []
    arms = list(dict.fromkeys(by_prompt["arm"]))
    for n, part in by_prompt.groupby("n_tokens"):
        counts = part.groupby("prompt")["arm"].transform("size")
        shared = part[counts == len(arms)].set_index("prompt")
        reference = shared.loc[shared["arm"] == arms[0], "mean_excess"]
        for arm, of_arm in shared.groupby("arm", sort=False):
            of_arm = of_arm.assign(excess_difference=of_arm["mean_excess"] - reference)
            values = of_arm[[*_MEASURES, "excess_difference"]]
            low, high = ratio_intervals(values.to_numpy(), np.ones(values.shape), resampling)
            starts = set(of_arm["first_token"])
            row = {"model": model, "arm": arm, "first_token": starts.pop() if len(starts) == 1 else None}
            row |= {"n_tokens": n, "prompts": len(of_arm), "null_score": float(null_score(n))}
            for at, (name, mean) in enumerate(values.mean().items()):
                row |= {name: mean, f"{name}_low": low[at], f"{name}_high": high[at]}
            table.append(row | {f"strongest_{p}": of_arm[f"strongest_{p}"].mean() for p in range(POSITIONS)})
    return pd.DataFrame(table)
