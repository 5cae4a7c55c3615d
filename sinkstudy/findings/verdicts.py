"""The rules by which the findings conclude. Each takes numbers from tables and returns a verdict with its reason.

The thresholds of the rules are constants here, printed in the findings, and apply to every model alike.
"""

from dataclasses import dataclass

import pandas as pd

CLEAR_EXCESS = 0.5  # a head this far above uniform attention is a sink beyond doubt
SMALL_EXCESS_CHANGE = 0.1  # a smaller change of mean excess is not an effect of length
HOLDS_AT = 0.5  # correlation below this means that most later layers do not follow
SIGNIFICANT = 0.05
MIN_TOKENS = 24  # below this uniform attention itself scores too high to judge by
NEAR_NULL = 0.05  # a mean score this near to uniform attention's is that of uniform attention
GOOD_FIT = 0.02  # a simulator that errs by less per layer is not rejected, however sure the difference
HARMLESS_KL = 1e-2
HARMLESS_AGREEMENT = 0.98
WORTHWHILE_SPEEDUP = 1.02


@dataclass(frozen=True)
class Verdict:
    """`holds`: True, False, or None where the data cannot say. `reason`: a sentence with the numbers it rests on."""

    holds: bool | None
    reason: str


def has_sinks(heads: pd.DataFrame, threshold: float) -> Verdict:
    """Whether some head is a sink in at least half of the prompts of MIN_TOKENS tokens or more.

    `heads`: a row per head over these prompts, see `profile.long_prompt_table`; none where there are no such prompts.
    The reason also counts the heads that reach `threshold`, with a clear excess, in every one of them.
    """
    if heads.empty:
        return Verdict(None, f"no prompt has {MIN_TOKENS} tokens or more.")
    sure = (heads["least_score"] >= threshold) & (heads["least_excess"] >= CLEAR_EXCESS)
    best = heads["best_excess"].max()
    count, total = int((heads["sink_share"] >= 0.5).sum()), len(heads)
    if count:
        return Verdict(
            True,
            f"{count} of {total} heads are sinks in at least half of the prompts of {MIN_TOKENS} tokens or more, "
            f"{int(sure.sum())} of them in every one with an excess score of at least {CLEAR_EXCESS:g}.",
        )
    return Verdict(
        False,
        f"no head is a sink in half of the prompts of {MIN_TOKENS} tokens or more; the highest excess score of any "
        f"head on any of them is {best:.2f}.",
    )


def length_effect(lengths: pd.DataFrame) -> Verdict:
    """Whether the mean score changes with length beyond what uniform attention's does (by mean excess score).

    Compares 2 tokens with the longest length, over the prompts that reach the longest; `lengths` needs no more rows of
    a prompt than these.
    """
    longest = lengths["n_tokens"].max()
    prompts = lengths.loc[lengths["n_tokens"] == longest, "prompt"].unique()
    part = (
        lengths[lengths["prompt"].isin(prompts)].groupby("n_tokens")[["mean_score", "null_score", "mean_excess"]].mean()
    )
    if longest < MIN_TOKENS:
        return Verdict(None, f"the longest prompt has only {longest} tokens.")
    first, last = part.loc[2], part.loc[longest]
    change = last["mean_excess"] - first["mean_excess"]
    numbers = (
        f"from 2 to {longest} tokens the mean score goes from {first['mean_score']:.3f} to {last['mean_score']:.3f}, "
        f"uniform attention's from {first['null_score']:.3f} to {last['null_score']:.3f}, and the mean excess from "
        f"{first['mean_excess']:.3f} to {round(last['mean_excess'], 3) + 0:.3f}"
    )
    if abs(change) < SMALL_EXCESS_CHANGE:
        return Verdict(False, f"{numbers}: the fall is that of uniform attention, not of the sinks.")
    direction = "lose" if change < 0 else "gain"
    return Verdict(True, f"{numbers}: beyond what uniform attention explains, heads {direction} sink strength.")


def first_layer_hypothesis(row: pd.Series) -> Verdict:
    """Whether first-layer sinks foretell later sinks; `row` is one of the correlation table."""
    if row["first_layer_sinks"] == 0:
        return Verdict(None, "no head of the first layer is a sink here, so there is nothing to follow.")
    if pd.isna(row["p_later_given_first"]):
        return Verdict(None, "the model has a single attention layer.")
    interval = f"{100 * row['ci_low']:.2f} to {100 * row['ci_high']:.2f}%"
    numbers = (
        f"{100 * row['p_later_given_first']:.2f}% of later layers follow a first-layer sink "
        f"(95% interval {'undefined' if pd.isna(row['ci_low']) else interval}), against "
        f"{100 * row['p_later']:.2f}% of all later heads, permutation p = {row['p_value']:.3g}"
    )
    if row["p_later_given_first"] < HOLDS_AT:
        return Verdict(False, f"{numbers}: most later layers do not follow.")
    if pd.isna(row["ci_low"]):
        return Verdict(
            None, f"{numbers}: fewer than two prompts have first-layer sinks, so there is no interval to judge by."
        )
    if row["p_value"] >= SIGNIFICANT or row["ci_low"] <= row["p_later"]:
        return Verdict(False, f"{numbers}: they follow no more than heads picked at random would.")
    return Verdict(True, f"{numbers}.")


def follows_null(curves: pd.DataFrame) -> Verdict:
    """Whether the mean score is that of uniform attention at every length of 2 tokens or more.

    `curves`: the rows of one model over all prompts at one threshold.
    """
    rows = curves[curves["n_tokens"] > 1].sort_values("n_tokens")
    if rows.empty:
        return Verdict(None, "no prompt has two tokens.")
    distance = (rows["mean_score"] - rows["null_score"]).abs()
    first, last, worst = rows.iloc[0], rows.iloc[-1], rows.loc[distance.idxmax()]
    text = (
        f"from {int(first['n_tokens'])} to {int(last['n_tokens'])} tokens the mean score goes from "
        f"{first['mean_score']:.3f} to {last['mean_score']:.3f}, uniform attention's from {first['null_score']:.3f} to "
        f"{last['null_score']:.3f}; the two are at most {distance.max():.4f} apart (at {int(worst['n_tokens'])} tokens)"
    )
    return Verdict(bool(distance.max() <= NEAR_NULL), f"{text}.")


def exceeds_control(control: pd.DataFrame) -> Verdict:
    """Whether a trained model has more excess than its control at every tabulated length.

    `control`: the rows of one pair at one threshold.
    """
    if control.empty:
        return Verdict(None, "no prompt is long enough to compare.")
    if control["excess_low"].isna().all():
        return Verdict(None, "a single prompt gives no interval to judge by.")
    least = control.loc[control["excess_low"].idxmin()]
    text = (
        f"at {_lengths(control['n_tokens'])} tokens the mean excess exceeds the control's, prompt by prompt, by at "
        f"least {least['excess_difference']:.3f} (95% interval {least['excess_low']:.3f} to "
        f"{least['excess_high']:.3f}, at {int(least['n_tokens'])} tokens)"
    )
    if least["excess_low"] > 0:
        return Verdict(True, f"{text}.")
    return Verdict(
        False,
        f"at {int(least['n_tokens'])} tokens the mean excess differs from the control's by "
        f"{least['excess_difference']:.3f} (95% interval {least['excess_low']:.3f} to {least['excess_high']:.3f}), "
        "which may be nothing.",
    )


def weakens(row: pd.Series) -> Verdict:
    """Whether the correlation falls at some length; `row` is one of the table of weakening."""
    if pd.isna(row["last_length"]):
        return Verdict(None, "the first layer has no sinks at any length, so no correlation can weaken.")
    last = f"beyond {int(row['last_length'])} tokens the first layer has no sinks at all"
    if pd.isna(row["length"]):
        return Verdict(None, f"first-layer sinks are too few to tell two parts apart; {last}.")
    levels = f"{100 * row['before']:.2f}% before and {100 * row['after']:.2f}% from there on"
    excess = f"{100 * row['excess_before']:+.2f} and {100 * row['excess_after']:+.2f}"
    beyond = f"beyond the base rate, {excess} percentage points"
    if pd.isna(row["fall_low"]):
        return Verdict(
            None,
            f"the best split is at {int(row['length'])} tokens ({levels}; {beyond}), but fewer than two prompts have "
            f"first-layer sinks, so there is no interval; {last}.",
        )
    split = (
        f"{int(row['length'])} tokens (95% interval {int(row['length_low'])} to {int(row['length_high'])}), with a "
        f"correlation of {levels} (difference {100 * row['fall']:.2f} points, 95% interval "
        f"{100 * row['fall_low']:.2f} to {100 * row['fall_high']:.2f}); {beyond}; {last}"
    )
    if row["fall_low"] > 0:
        return Verdict(True, f"it weakens at {split}.")
    return Verdict(False, f"no length is found at which it surely falls: the best split is at {split}.")


def rejected(row: pd.Series) -> Verdict:
    """Whether held-out prompts reject a simulator; `row` is one of the table of held-out errors."""
    text = (
        f"its sink fraction per layer errs by {100 * row['layer_error']:.2f} percentage points on average over "
        f"{int(row['cells'])} cells (layer, length and half); a perfect simulator would err by "
        f"{100 * row['chance_error']:.2f} (p = {row['p_value']:.3g})"
    )
    return Verdict(bool(row["p_value"] < SIGNIFICANT and row["layer_error"] > GOOD_FIT), f"{text}.")


def harmless(benchmark: pd.DataFrame) -> pd.DataFrame:
    """The rows in which heads were replaced and predictions stayed what they were."""
    same = (benchmark["kl"] <= HARMLESS_KL) & (benchmark["top1_agreement"] >= HARMLESS_AGREEMENT)
    return benchmark[(benchmark["heads_replaced"] > 0) & same]


def fastest(rows: pd.DataFrame) -> pd.Series:
    """The row with the largest speedup that three quarters of the rounds reached, so that a single slow round of SDPA
    makes no winner."""
    return rows.loc[rows["speedup_low"].idxmax()]


def pareto_front(benchmark: pd.DataFrame) -> pd.DataFrame:
    """The rows of one cell (phase, length, batch) that no other row beats: none is both faster and milder, or equal in
    one and better in the other."""
    rows = benchmark.dropna(subset=["speedup_vs_sdpa", "kl"])
    speed, cost = rows["speedup_vs_sdpa"].to_numpy(), rows["kl"].to_numpy()
    faster, milder = speed[None] - speed[:, None], cost[:, None] - cost[None]  # (row, other row)
    beaten = (faster >= 0) & (milder >= 0) & (faster + milder > 0)
    return rows[~beaten.any(axis=1)]


def worth_having(benchmark: pd.DataFrame) -> list[Verdict]:
    """For each phase and length (smallest batch): whether some harmless row is worthwhile, and which is fastest."""
    rows = benchmark[benchmark["batch"] == benchmark["batch"].min()].dropna(subset=["speedup_vs_sdpa"])
    verdicts = []
    for (phase, n), cell in rows.groupby(["phase", "n_tokens"], sort=False):
        where = f"{_PHASE[phase]} at {n} tokens"
        safe = harmless(cell)
        if safe.empty:
            tried = (cell["heads_replaced"] > 0).any()
            why = "no harmless way to replace heads" if tried else "no heads to replace"
            verdicts.append(Verdict(False if tried else None, f"{where}: {why}."))
            continue
        best = fastest(safe)
        worth = bool(best["speedup_low"] >= WORTHWHILE_SPEEDUP)
        numbers = f"{_times(best)}, ceiling {best['ceiling']:.2f}, KL {best['kl']:.1e}"
        name = f"`{best['strategy']}` with policy `{best['policy']}`"
        judged = f"{name} is worth having" if worth else f"nothing is worth having, the fastest being {name}"
        verdicts.append(Verdict(worth, f"{where}: {judged} ({numbers})."))
    return verdicts


_PHASE = {"prefill": "prefill", "decode": "decoding"}


def attention_share(benchmark: pd.DataFrame) -> Verdict:
    """Whether attention takes most of a prefill: its share bounds what replacing heads can save, whatever replaces
    them. Measured by leaving the attention call out altogether; smallest batch."""
    rows = benchmark[(benchmark["phase"] == "prefill") & (benchmark["batch"] == benchmark["batch"].min())]
    rows = rows.dropna(subset=["attention_share"]).sort_values("n_tokens")
    if rows.empty:
        return Verdict(None, "the share of attention could not be measured without SDPA.")
    shortest, longest = rows.iloc[0], rows.iloc[-1]
    text = (
        f"the attention call takes {_share(shortest)} of a prefill of {int(shortest['n_tokens'])} tokens and "
        f"{_share(longest)} of one of {int(longest['n_tokens'])}"
    )
    mostly = bool(shortest["attention_share"] > 0.5)
    rest = "" if mostly else ": a short prompt has little to gain, because attention is a small share of its work"
    return Verdict(mostly, f"{text}{rest}.")


def _share(row: pd.Series) -> str:
    share = row["attention_share"]
    return f"{100 * share:.0f}%" if share >= 0.005 else "no measurable part"


def worth_optimizing(benchmark: pd.DataFrame) -> Verdict:
    """Whether some strategy is faster than SDPA while leaving predictions alone."""
    tried = benchmark[benchmark["heads_replaced"] > 0]
    if tried.empty:
        return Verdict(None, "no policy found a head to replace at any benchmarked length.")
    safe = harmless(benchmark)
    limits = f"KL at most {HARMLESS_KL:g} and top-1 agreement at least {HARMLESS_AGREEMENT:g}"
    if safe.empty:
        least = tried.loc[tried["kl"].idxmin()]
        return Verdict(
            False,
            f"no row meets {limits}; the mildest ({_name(least)}) has a KL of {least['kl']:.2g} and an agreement of "
            f"{least['top1_agreement']:.3f}.",
        )
    best = fastest(safe)
    text = (
        f"the fastest row that keeps {limits} is {_name(best)}: {_times(best)} with "
        f"{int(best['heads_replaced'])} heads replaced (ceiling {best['ceiling']:.2f})"
    )
    if best["speedup_low"] < WORTHWHILE_SPEEDUP:
        return Verdict(False, f"{text}, which is not worth having.")
    return Verdict(True, f"{text}.")


def original_proposal(benchmark: pd.DataFrame) -> Verdict:
    """Whether copying the first layer's pattern, as the original study proposed, is faster than SDPA everywhere."""
    rows = benchmark[(benchmark["strategy"] == "reuse") & (benchmark["heads_replaced"] > 0)]
    rows = rows.dropna(subset=["speedup_vs_sdpa"])
    if rows.empty:
        return Verdict(None, "the original proposal (`reuse` of the first layer's pattern) had no head to replace.")
    slow, fast = (rows.loc[index] for index in (rows["speedup_vs_sdpa"].idxmin(), rows["speedup_vs_sdpa"].idxmax()))
    return Verdict(
        bool(slow["speedup_vs_sdpa"] > 1),
        f"the original proposal runs at {slow['speedup_vs_sdpa']:.2f} ({_name(slow)}) to "
        f"{fast['speedup_vs_sdpa']:.2f} ({_name(fast)}) times SDPA's speed, and at "
        f"{rows['speedup_vs_eager'].min():.2f} to {rows['speedup_vs_eager'].max():.2f} times eager's.",
    )


def _name(row: pd.Series) -> str:
    phase = "decoding " if row["phase"] == "decode" else ""
    return f"{phase}`{row['strategy']}` with policy `{row['policy']}` at {int(row['n_tokens'])} tokens"


def _times(row: pd.Series) -> str:
    return f"{row['speedup_vs_sdpa']:.2f} times SDPA's speed ({row['speedup_low']:.2f} in three quarters of the rounds)"


def _lengths(lengths: pd.Series) -> str:
    return ", ".join(str(int(n)) for n in sorted(lengths))
