"""Whether the first layer tells later sinks, whether it does so less on longer prompts, and what else tells them."""

import pandas as pd

from sinkstudy.findings.rules import SIGNIFICANT, Verdict, numbers_of
from sinkstudy.findings.text import percent
from sinkstudy.stats.recommendation import BASE, CLEAR_GAIN, over_all_lengths, recommended

HOLDS_AT = 0.5  # correlation below this means that most later layers do not follow
SOME_SINKS = 0.01  # a smaller share of later sinks leaves little to tell
NAMES = {
    BASE: "the base rate of the layer",
    "record": "the head's own record (its mean score on other prompts)",
    "length_and_first_token": "prompt length and first token",
    "first_layer": "the same head of the first layer",
    "activation": "the first token's activation as it enters the layer",
    "previous_layer": "the same head of the layer before",
    "anchor": "the same head of the best earlier layer",
    "all": "all of these together",
}


def first_layer(correlation: pd.DataFrame) -> Verdict:
    """Whether first-layer sinks predict later ones, judged at every length.

    `correlation`: rows over all prompts, one per length at which uniform attention is no sink. Where the first layer
    has sinks, later ones must follow beyond the base rate at some length, corrected for the number of lengths
    (Bonferroni). Beyond the last such length it predicts nothing, and fails where later layers do have sinks.
    """
    rows = correlation.sort_values("n_tokens")
    if rows["p_later"].isna().all():
        return Verdict(None, "the model has a single attention layer." if len(rows) else "no prompt is long enough.")
    present = rows[rows["first_layer_sinks"] > 0]
    beyond = rows[rows["n_tokens"] > present["n_tokens"].max()] if len(present) else rows
    absent = beyond[beyond["p_later"] >= SOME_SINKS]
    follows, reasons, numbers = _followed(present) if len(present) else (None, [], {})
    if len(absent):
        first, least = absent.iloc[0], beyond["n_tokens"].min()
        numbers |= {"sinkless_from": float(least), "sinkless_p_later": float(first["p_later"])}
        reasons.append(
            f"at {least:.0f} tokens and more no head of the first layer is a sink, while "
            f"{percent(first['p_later'])} of all later heads are at {first['n_tokens']:.0f}: there it predicts nothing"
        )
        follows = False
    if not reasons:
        reasons.append("neither the first layer nor a later one has sinks to speak of, so there is nothing to predict")
    return Verdict(follows, f"{'; '.join(reasons)}.", numbers)


def _followed(present: pd.DataFrame) -> tuple[bool | None, list[str], dict[str, float]]:
    """Whether later layers follow beyond the base rate at some of the lengths with first-layer sinks, and why."""
    clear = present[present["p_value"] < SIGNIFICANT / len(present)]
    clear = clear[clear["ci_low"] > clear["p_later"]]
    row = present.loc[(clear["p_later_given_first"] if len(clear) else present["first_layer_sinks"]).idxmax()]
    numbers = numbers_of(row, "n_tokens first_layer_sinks p_later_given_first p_later ci_low ci_high p_value")
    numbers |= {"lengths": len(present), "least_p_value": float(present["p_value"].min())}
    lengths = " to ".join(f"{n:.0f}" for n in dict.fromkeys([present["n_tokens"].min(), present["n_tokens"].max()]))
    text = (
        f"where the first layer has sinks ({lengths} tokens), {percent(row['p_later_given_first'])} of later layers "
        f"follow them at {row['n_tokens']:.0f} tokens (95% interval {_interval(row)}), against "
        f"{percent(row['p_later'])} of all later heads, permutation p = {row['p_value']:.3g}"
    )
    if len(present) > 1:
        text += f" (least of {len(present)} lengths {present['p_value'].min():.3g})"
    if present["ci_low"].isna().all():
        few = "fewer than two prompts have first-layer sinks, so there is no interval to judge by"
        return None, [f"{text}: {few}"], numbers
    if clear.empty:
        return False, [f"{text}: they follow no more than heads picked at random would"], numbers
    if row["p_later_given_first"] < HOLDS_AT:
        return False, [f"{text}: most later layers do not follow"], numbers
    return True, [text], numbers


def length(row: pd.Series) -> Verdict:
    """Whether the correlation weakens at some length by more than its base rate; `row`: of the table of weakening."""
    names = "length length_low length_high before after fall fall_low fall_high excess_before excess_after excess_fall "
    numbers = numbers_of(row, f"{names}excess_fall_low excess_fall_high last_length")
    if pd.isna(row["last_length"]):
        return Verdict(None, "the first layer has no sinks at any length, so no correlation can weaken.", numbers)
    last = f"beyond {row['last_length']:.0f} tokens the first layer has no sinks at all"
    if pd.isna(row["length"]):
        return Verdict(None, f"first-layer sinks are too few to tell two parts apart; {last}.", numbers)
    numbers |= {f"base_{part}": numbers[part] - numbers[f"excess_{part}"] for part in ("before", "after")}
    base = f"the base rate goes from {percent(numbers['base_before'])} to {percent(numbers['base_after'])}"
    levels = f"{percent(row['before'])} before and {percent(row['after'])} from there on"
    if pd.isna(row["fall_low"]):
        few = "fewer than two prompts have first-layer sinks, so there is no interval"
        split = f"the best split is at {row['length']:.0f} tokens ({levels}), while {base}"
        return Verdict(None, f"{split}, but {few}; {last}.", numbers)
    split = (
        f"{row['length']:.0f} tokens (95% interval {row['length_low']:.0f} to {row['length_high']:.0f}), with {levels} "
        f"(a change of {_change(row, 'fall')}), while {base}; "
        f"the change beyond it is {_change(row, 'excess_fall')}"
    )
    if row["fall_low"] <= 0:
        return Verdict(False, f"no length is found at which it surely falls: best split at {split}; {last}.", numbers)
    if row["excess_fall_low"] <= 0:
        return Verdict(False, f"what falls is the base rate: best split at {split}; {last}.", numbers)
    return Verdict(True, f"it weakens at {split}; {last}.", numbers)


def predictor(predictors: pd.DataFrame, learning: pd.DataFrame) -> Verdict:
    """Which predictor of later sinks to use, if one tells them better than the base rate of their layer.

    `predictors`, `learning`: rows of one target in the tables of these names.
    """
    if predictors.empty:
        return Verdict(
            None, "prompts or layers are too few to fit predictors to some prompts and judge them on others."
        )
    every = over_all_lengths(predictors)
    if every.empty:
        why = "; ".join(f"{why} in later layers" for why in predictors["undefined"].unique())
        return Verdict(None, f"{why} at any length, so there is nothing to tell apart.")
    if every["gain_low"].isna().all():
        return Verdict(None, "fewer than two prompts have sinks in later layers, so there is no interval to judge by.")
    base, best = every.loc[BASE], every.loc[every.drop(index=BASE)["auc"].idxmax()]
    numbers = {"base_auc": float(base["auc"]), "candidates": len(every) - 1}
    row = every.loc[recommended(every) or best.name]
    numbers |= numbers_of(row, "auc auc_low auc_high gain gain_low gain_high log_loss brier precision recall")
    area = _measured(row, "auc", "95% interval ")
    if recommended(every) is None:
        text = f"no candidate tells later sinks better than {NAMES[BASE]} or chance: its area under the ROC curve is "
        text += f"{base['auc']:.3f}, and {area} that of the best of the other {len(every) - 1}, {NAMES[best.name]}"
        return Verdict(False, f"{text}; gain {_measured(row, 'gain')}.", numbers)
    text = f"use {NAMES[row.name]}: on prompts it has not seen, its area under the ROC curve is {area}, "
    text += f"a gain of {_measured(row, 'gain')} on {NAMES[BASE]} ({base['auc']:.3f})"
    if row.name != "first_layer":
        numbers["first_layer_auc"] = float(every.loc["first_layer", "auc"])
        text += f"; the same head of the first layer has {numbers['first_layer_auc']:.3f}"
    if row["behind"] > 0:
        numbers |= numbers_of(row, "behind behind_low behind_high")
        text += f"; {NAMES[every['auc'].idxmax()]} have {_measured(row, 'behind')} more"
    if row.name == "record" and len(learning):
        numbers["enough_prompts"] = enough_prompts(learning)
        text += f"; a record of {numbers['enough_prompts']} prompts is as good as one of all"
    return Verdict(True, f"{text}.", numbers, row=row)


def enough_prompts(learning: pd.DataFrame) -> int:
    """The fewest prompts from which on, at every length, a record is within CLEAR_GAIN of that of all prompts."""
    most = 0
    for _, curve in learning.sort_values("training_prompts").groupby("n_tokens"):
        short = curve[curve["auc"] < curve["auc"].iloc[-1] - CLEAR_GAIN]
        later = curve[curve["training_prompts"] > short["training_prompts"].max()] if len(short) else curve
        most = max(most, int(later["training_prompts"].iloc[0]))
    return most


def _interval(row: pd.Series) -> str:
    return "undefined" if pd.isna(row["ci_low"]) else f"{100 * row['ci_low']:.2f} to {percent(row['ci_high'])}"


def _change(row: pd.Series, fall: str) -> str:
    change, low, high = (-100 * row[f"{fall}{end}"] for end in ("", "_high", "_low"))
    return f"{change:+z.2f} points, 95% interval {low:+z.2f} to {high:+z.2f}"


def _measured(row: pd.Series, name: str, before: str = "") -> str:
    return f"{row[name]:z.3f} ({before}{row[f'{name}_low']:z.3f} to {row[f'{name}_high']:z.3f})"
