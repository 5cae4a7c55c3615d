"""The rules by which the findings conclude.

Each takes rows of tables and returns a verdict with its reason. The bounds of the rules are constants here, are
printed in the findings, and apply to every model alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from sinkstudy.findings.inputs import MIN_TOKENS
from sinkstudy.findings.text import show

CLEAR_EXCESS = 0.5  # a head this far above uniform attention is a sink beyond doubt
SMALL_EXCESS_CHANGE = 0.1  # a smaller change of mean excess is not an effect of length
SIGNIFICANT = 0.05
NEAR_NULL = 0.05  # a mean score this near to uniform attention's is that of uniform attention
GOOD_FIT = 0.02  # a simulator that errs by less per layer is not rejected, however sure the difference
IMPLAUSIBLE_PERPLEXITY = 1000.0  # per token of English; small language models are below 100, broken ones far beyond


@dataclass(frozen=True)
class Verdict:
    """`holds`: True, False, or None where the data cannot say. `reason`: a sentence with the numbers it rests on.

    `numbers`: these numbers by name, read from the rows `rows` of the file `file`. `row`: the plan that was judged, or
    the predictor to use, as its table has it.
    """

    holds: bool | None
    reason: str
    numbers: dict[str, float] = field(default_factory=dict)
    file: str = ""
    rows: str = ""
    row: pd.Series | None = field(default=None, compare=False)


def has_sinks(heads: pd.DataFrame, threshold: float) -> Verdict:
    """Whether some head is a sink in at least half of the prompts of MIN_TOKENS tokens or more.

    `heads`: a row per head over these prompts, see `profile.long_prompt_table`; none where there are no such prompts.
    The reason also counts the heads that reach `threshold`, with a clear excess, in every one of them.
    """
    if heads.empty:
        return Verdict(None, f"no prompt has {MIN_TOKENS} tokens or more.")
    sure = (heads["least_score"] >= threshold) & (heads["least_excess"] >= CLEAR_EXCESS)
    numbers = {
        "heads": len(heads),
        "sink_heads": int((heads["sink_share"] >= 0.5).sum()),
        "sinks_in_every_prompt": int(sure.sum()),
        "highest_excess": float(heads["best_excess"].max()),
    }
    text = f"{numbers['sink_heads'] or 'none'} of {len(heads)} heads"
    if numbers["sink_heads"]:
        text += f" are sinks in at least half of the prompts of {MIN_TOKENS} tokens or more, "
        text += f"{sure.sum()} of them in every one with an excess score of at least {CLEAR_EXCESS:g}."
        return Verdict(True, text, numbers)
    text += f" is a sink in half of the prompts of {MIN_TOKENS} tokens or more; the highest excess score of any head "
    return Verdict(False, f"{text}on any of them is {numbers['highest_excess']:.2f}.", numbers)


def simulator(errors: pd.DataFrame) -> Verdict:
    """Whether the original study's formula predicts prompts that it has not seen; `errors`: a row per simulator."""
    rows = errors[errors["simulator"] == "formula"] if len(errors) else errors
    if rows.empty:
        return Verdict(None, "the prompts are too few or too short to predict one half of them from the other.")
    row = rows.iloc[0]
    text = (
        f"the formula's sink fraction per layer errs by {100 * row['layer_error']:.2f} percentage points on average "
        f"over {row['cells']:.0f} cells (layer, length and half); a perfect simulator would err by "
        f"{100 * row['chance_error']:.2f} (p = {row['p_value']:.3g})."
    )
    return Verdict(not rejected(row), text, numbers_of(row, "layer_error chance_error p_value cells"))


def rejected(row: Mapping[str, float]) -> bool:
    """Whether held-out prompts reject a simulator; `row` is one of the table of held-out errors."""
    return bool(row["p_value"] < SIGNIFICANT and row["layer_error"] > GOOD_FIT)


def beside(cells: pd.DataFrame) -> Verdict:
    """Whether a simulation of a model's own shape describes it; `cells`: measured and simulated, per length and layer.

    It is rejected where it errs by more, on average, than the measured intervals reach: however the errors of cells go
    together, sampling of prompts does not do that in more than one of twenty studies.
    """
    cells = cells[cells["layer"].notna()]
    reach = (cells["ci_high"] - cells["ci_low"]).mean(skipna=False) / 2
    if cells.empty or pd.isna(reach):
        return Verdict(None, "too few prompts reach its lengths for an interval of what was measured.")
    error = (cells["simulated"] - cells["measured"]).abs().mean()
    text = (
        f"its sink fraction per layer errs by {100 * error:.2f} percentage points on average over {len(cells)} cells "
        f"(layer and length), where 95% intervals of what was measured reach {100 * reach:.2f} to either side."
    )
    return Verdict(not error > max(reach, GOOD_FIT), text)


def length_effect(lengths: pd.DataFrame) -> Verdict:
    """Whether the mean score changes with length beyond what uniform attention's does (by mean excess score).

    Compares 2 tokens with the longest length, over the prompts that reach the longest; `lengths` needs no more rows of
    a prompt than these.
    """
    longest = lengths["n_tokens"].max()
    if longest < MIN_TOKENS:
        return Verdict(None, f"the longest prompt has only {longest} tokens.")
    reaching = lengths[lengths["prompt"].isin(lengths.loc[lengths["n_tokens"] == longest, "prompt"])]
    means = reaching.groupby("n_tokens")[["mean_score", "null_score", "mean_excess"]].mean()
    first, last = means.loc[2], means.loc[longest]
    change = last["mean_excess"] - first["mean_excess"]
    text = (
        f"from 2 to {longest} tokens the mean score goes from {first['mean_score']:.3f} to {last['mean_score']:.3f}, "
        f"uniform attention's from {first['null_score']:.3f} to {last['null_score']:.3f}, and the mean excess from "
        f"{first['mean_excess']:.3f} to {show(last['mean_excess'])}"
    )
    if abs(change) < SMALL_EXCESS_CHANGE:
        return Verdict(False, f"{text}: the fall is that of uniform attention, not of the sinks.")
    text += f": beyond what uniform attention explains, heads {'lose' if change < 0 else 'gain'} sink strength."
    return Verdict(True, text)


def misloaded(quality: pd.DataFrame) -> Verdict:
    """Whether an unmodified model's perplexity on the held-out text (its longest stretch) is beyond belief."""
    known = quality.dropna(subset="perplexity") if "perplexity" in quality else pd.DataFrame()
    rows = known.query("policy == 'none' and set == 'held-out'") if len(known) else known
    if rows.empty:
        return Verdict(None, "perplexity was not measured.")
    row = rows.sort_values("n_tokens").iloc[-1]
    text = f"perplexity on the held-out text is {row['perplexity']:.4g} per token."
    return Verdict(not row["perplexity"] <= IMPLAUSIBLE_PERPLEXITY, text)


def numbers_of(row: pd.Series, names: str) -> dict[str, float]:
    return row[names.split()].astype(float).to_dict()
