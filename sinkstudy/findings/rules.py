"""The rules by which the findings conclude.

Each takes rows of tables and returns a verdict with its reason. The bounds of the rules are constants here, are
printed in the findings, and apply to every model alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from sinkstudy.findings.inputs import MIN_TOKENS
from sinkstudy.stats.pareto import timing_noise

CLEAR_EXCESS = 0.5  # a head this far above uniform attention is a sink beyond doubt
SMALL_EXCESS_CHANGE = 0.1  # a smaller change of mean excess is not an effect of length
SIGNIFICANT = 0.05
NEAR_NULL = 0.05  # a mean score this near to uniform attention's is that of uniform attention
GOOD_FIT = 0.02  # a simulator that errs by less per layer is not rejected, however sure the difference
HARMLESS_KL = 1e-2
HARMLESS_AGREEMENT = 0.98
WORTHWHILE_SPEEDUP = 1.02
IMPLAUSIBLE_PERPLEXITY = 1000.0  # per token of English; small language models are below 100, broken ones far beyond
PHASES = {"prefill": "prefill", "decode": "decoding"}
HARMLESS = f"KL at most {HARMLESS_KL:g} and top-1 agreement at least {HARMLESS_AGREEMENT:g}"


@dataclass(frozen=True)
class Verdict:
    """`holds`: True, False, or None where the data cannot say. `reason`: a sentence with the numbers it rests on.

    `numbers`: these numbers by name, read from the rows `rows` of the file `file`.
    """

    holds: bool | None
    reason: str
    numbers: dict[str, float] = field(default_factory=dict)
    file: str = ""
    rows: str = ""


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


def skippable(benchmark: pd.DataFrame) -> Verdict:
    """Whether heads can be replaced while predictions stay what they were, whatever the speed."""
    tried, safe = _tried(benchmark), harmless(benchmark)
    if tried.empty:
        return _nothing_tried(benchmark)
    row = safe.loc[safe["heads_replaced"].idxmax()] if len(safe) else tried.loc[tried["kl"].idxmin()]
    heads = f"{row['heads_replaced']:.0f} heads ({100 * row['head_fraction']:.2f}%)"
    costs = f"a KL of {row['kl']:.2g} and a top-1 agreement of {row['top1_agreement']:.3f} on held-out text"
    if safe.empty:
        text = f"no row keeps {HARMLESS}; the mildest ({_name(row)}) replaces {heads} at {costs}."
    else:
        text = f"{heads} can be replaced at {costs} ({_name(row)})."
    return Verdict(len(safe) > 0, text, _numbers(row, "heads_replaced head_fraction kl top1_agreement n_tokens"))


def worth_replacing(benchmark: pd.DataFrame) -> Verdict:
    """Whether some way to replace heads is faster than SDPA and leaves predictions alone.

    A row is credited with the speedup that three quarters of the rounds reached, so that one slow round of SDPA makes
    no winner, as far as its ceiling allows it. The row is judged in which this is furthest beyond what SDPA itself
    gives when it is timed twice, and beyond what is worth having.
    """
    tried = _tried(benchmark)
    if tried.empty:
        return _nothing_tried(benchmark)
    if tried["speedup_vs_sdpa"].isna().all():
        return Verdict(None, "SDPA does not run this model, so there is no speedup over it.")
    safe = harmless(benchmark.assign(noise=timing_noise(benchmark))).dropna(subset=["speedup_vs_sdpa"])
    if safe.empty:
        return Verdict(False, f"none of {len(tried)} timed ways to replace heads keeps {HARMLESS}.")
    credited = safe[["speedup_low", "ceiling"]].min(axis=1)
    margin = credited / safe["noise"].clip(lower=WORTHWHILE_SPEEDUP)
    best, credited = safe.loc[margin.idxmax()], credited[margin.idxmax()]
    text = (
        f"the best of {len(safe)} harmless ways ({_name(best)}, {best['heads_replaced']:.0f} heads) runs at "
        f"{best['speedup_vs_sdpa']:.2f} times SDPA's speed ({best['speedup_low']:.2f} in three quarters of the rounds; "
        f"ceiling {best['ceiling']:.2f}; SDPA differs from itself by a factor of {best['noise']:.2f})"
    )
    names = "speedup_vs_sdpa speedup_low ceiling noise kl top1_agreement heads_replaced n_tokens"
    numbers = {"ways": len(safe)} | _numbers(best, names)
    if margin.max() > 1:
        return Verdict(True, f"{text}.", numbers)
    noise = best["speedup_low"] > 1 and (credited <= best["noise"] or best["speedup_low"] > best["ceiling"])
    return Verdict(False, f"{text}: {'this is noise' if noise else 'not worth having'}.", numbers)


def worth_by_length(benchmark: pd.DataFrame) -> list[tuple[str, Verdict]]:
    """The same for each phase and length (smallest batch), by its name."""
    if benchmark.empty:
        return []
    cells = benchmark[benchmark["batch"] == benchmark["batch"].min()].groupby(["phase", "n_tokens"], sort=False)
    return [(f"{PHASES[phase]} at {n} tokens", worth_replacing(cell)) for (phase, n), cell in cells]


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
    return Verdict(not rejected(row), text, _numbers(row, "layer_error chance_error p_value cells"))


def rejected(row: Mapping[str, float]) -> bool:
    """Whether held-out prompts reject a simulator; `row` is one of the table of held-out errors."""
    return bool(row["p_value"] < SIGNIFICANT and row["layer_error"] > GOOD_FIT)


def length_effect(lengths: pd.DataFrame) -> Verdict:
    """Whether the mean score changes with length beyond what uniform attention's does (by mean excess score).

    Compares 2 tokens with the longest length, over the prompts that reach the longest; `lengths` needs no more rows of
    a prompt than these.
    """
    longest = lengths["n_tokens"].max()
    prompts = lengths.loc[lengths["n_tokens"] == longest, "prompt"]
    if longest < MIN_TOKENS:
        return Verdict(None, f"the longest prompt has only {longest} tokens.")
    means = (
        lengths[lengths["prompt"].isin(prompts)].groupby("n_tokens")[["mean_score", "null_score", "mean_excess"]].mean()
    )
    first, last = means.loc[2], means.loc[longest]
    change = last["mean_excess"] - first["mean_excess"]
    text = (
        f"from 2 to {longest} tokens the mean score goes from {first['mean_score']:.3f} to {last['mean_score']:.3f}, "
        f"uniform attention's from {first['null_score']:.3f} to {last['null_score']:.3f}, and the mean excess from "
        f"{first['mean_excess']:.3f} to {round(last['mean_excess'], 3) + 0:.3f}"
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
    return Verdict(not row["perplexity"] <= IMPLAUSIBLE_PERPLEXITY, text, _numbers(row, "perplexity"))


def harmless(benchmark: pd.DataFrame) -> pd.DataFrame:
    """The rows in which heads were replaced and predictions stayed what they were."""
    tried = _tried(benchmark)
    return (
        tried[(tried["kl"] <= HARMLESS_KL) & (tried["top1_agreement"] >= HARMLESS_AGREEMENT)] if len(tried) else tried
    )


def _tried(benchmark: pd.DataFrame) -> pd.DataFrame:
    return benchmark[benchmark["heads_replaced"] > 0] if len(benchmark) else benchmark


def _nothing_tried(benchmark: pd.DataFrame) -> Verdict:
    return Verdict(None, f"no policy {'found a head to replace at any length' if len(benchmark) else 'was timed'}.")


def _name(row: pd.Series) -> str:
    return f"{row['strategy']} with policy {row['policy']}, {PHASES[row['phase']]} at {row['n_tokens']:.0f} tokens"


def _numbers(row: pd.Series, names: str) -> dict[str, float]:
    return {name: float(row[name]) for name in names.split()}
