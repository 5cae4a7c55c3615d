"""What the title of a figure says: its one message, read from the numbers that the figure draws."""

import numpy as np
import pandas as pd

from sinkstudy.stats.mechanism import SINK_EXCESS
from sinkstudy.stats.positions import KINDS
from sinkstudy.stats.recommendation import CLEAR_GAIN, over_all_lengths, recommended

PREDICTORS = {
    "layer_base_rate": "the base rate of its layer",
    "record": "a head's record on other prompts",
    "length_and_first_token": "length and first token",
    "first_layer": "same head, first layer",
    "activation": "first token's activation",
    "previous_layer": "same head, layer before",
    "anchor": "same head, best earlier layer",
    "all": "all together",
}
KIND_NAMES = {"first": "the first token", "delimiter": "a delimiter", "other": "another token"}
SIMULATORS = {"formula": "original formula", "calibrated": "calibrated"}
PHASES = {"prefill": "prefill", "decode": "decoding"}
_NEAR_NULL = 0.05  # A score so near to uniform attention's is not called above it.
_VANISHED, _KEPT = 0.1, 0.9  # Below the first share of what it was it has vanished, above the second it is kept.
_REACHED = 1 / 3  # A length is spoken of where this share of the prompts reaches it.
_SIGNIFICANT = 0.05


def excess_by_head(heads: pd.DataFrame) -> str:
    """`heads`: a row per head, with `mean_excess_score`."""
    if heads["mean_excess_score"].isna().all():
        return "Prompts of one token show no sinks"
    return _counted(heads, heads["mean_excess_score"], SINK_EXCESS, "mean excess")


def score_by_head(heads: pd.DataFrame, threshold: float) -> str:
    """`heads`: a row per head, with `mean_sink_score`."""
    return _counted(heads, heads["mean_sink_score"], threshold, "mean sink score")


def _counted(heads: pd.DataFrame, values: pd.Series, bound: float, name: str) -> str:
    strong, layer = values >= bound, heads["layer"].min()
    if not strong.any():
        return f"No head has a {name} of {bound:g}: the highest is {values.max():.2f}"
    found = f"{strong.sum()} of {len(heads)} heads have a {name} of {bound:g} or more"
    return f"{found}, {strong[heads['layer'] == layer].sum() or 'none'} of them in layer {layer}"


def score_by_layer(layers: pd.DataFrame, threshold: float) -> str:
    """`layers`: a row per layer, with its mean score and that of uniform attention."""
    mean, null = layers["mean_sink_score"], layers["mean_null_score"].iloc[0]
    above, reach = (mean > null + _NEAR_NULL).sum(), (mean >= threshold).sum()
    if not above:
        return f"No layer scores clearly above uniform attention ({null:.2f})"
    found = f"{above} of {len(layers)} layers score clearly above uniform attention ({null:.2f})"
    return f"{found}, {reach or 'none'} of them {threshold:g} or more"


def over_lengths(curves: pd.DataFrame, threshold: float) -> str:
    """`curves`: one model's curves over all sets. Compared are the first and the last length at which uniform attention
    is no sink and that enough prompts reach."""
    rows = curves[(curves["threshold"] == threshold) & (curves["null_score"] < threshold)].sort_values("n_tokens")
    rows = rows[rows["prompts"] >= _REACHED * rows["prompts"].max()]
    if len(rows) < 2:
        return "Prompts are too short to show what length changes"
    first, last = rows.iloc[0], rows.iloc[-1]
    (share, excess), (share_last, excess_last) = (row[["sink_fraction", "mean_excess"]] for row in (first, last))
    scores = f"({excess:z.2f} to {excess_last:z.2f})"
    if rows["sink_fraction"].max() == 0:
        how = f"mean excess {_course(excess, excess_last)}s {scores}"
        return f"No head is a sink at {threshold:g} where uniform attention is none; {how}"
    course = _course(share, share_last)
    said = f"Sinks at {threshold:g} {course} with length ({share:.1%} to {share_last:.1%} of heads)"
    if course in ("vanish", "fall"):
        how = "falls less" if excess_last * share > excess * share_last else "falls with them"
        return f"{said}; excess {'does not' if excess_last >= _KEPT * excess else how} {scores}"
    return f"{said}; excess {_course(excess, excess_last)}s {scores}"


def _course(first: float, last: float) -> str:
    if abs(last - first) < max((1 - _KEPT) * abs(first), 0.01):
        return "stay"
    return "grow" if last > first else "vanish" if last < _VANISHED * first else "fall"


def by_head_over_lengths(
    lengths: np.ndarray, scores: np.ndarray, prompts: np.ndarray, null: np.ndarray, threshold: float
) -> str:
    """`scores` (layer, head, length), `prompts` (length,) that reach each of `lengths`, `null` (length,)."""
    if len(prompts) < 2:
        return "Prompts of one token show no sinks"
    last = int(np.flatnonzero(prompts >= _REACHED * prompts[1])[-1])
    at = [(scores[..., n] >= threshold).sum() for n in (1, last)]
    above, heads = (scores[..., last] > null[last] + _NEAR_NULL).sum(), scores[..., 0].size
    found = (
        f"Scores of {threshold:g} or more: {at[0]} of {heads} heads at 2 tokens, {at[1] or 'none'} at {lengths[last]:,}"
    )
    return f"{found} ({above or 'none'} there clearly above uniform attention)"


def of_examples(scores: list[float]) -> str:
    """`scores`: sink scores of the heads whose maps are shown."""
    return f"One head puts {max(scores):.0%} of its attention on the first token, another {min(scores):.0%}"


def activation(mechanism: pd.DataFrame) -> str:
    """`mechanism`: one model's table, see `stats.mechanism`."""
    if mechanism.empty:
        return "No prompt has two tokens to compare"
    of_all = mechanism[mechanism["layer"].isna()].set_index("quantity")
    highest, relation = of_all.loc["highest_excess", "value"], of_all.loc["activation_correlation"]
    if highest < SINK_EXCESS:
        return f"No sinks to explain: the highest mean excess of a head is {highest:.2f}"
    if pd.isna(relation["low"]):
        return "There are sinks, but what goes with them could not be judged"
    number = f"(rank correlation over layers {relation['value']:.2f})"
    sure = relation["low"] > 0 and of_all.loc["activation_p_value", "value"] < _SIGNIFICANT
    return f"Sinks {'' if sure else 'do not surely '}come and go with the first token's activation {number}"


def positions(shares: pd.DataFrame) -> str:
    """`shares`: per layer, the share of cases with a sink at each kind of token."""
    if shares.empty:
        return "Where the sinks are was not measured"
    kinds = shares[list(KINDS)].sum().sort_values(ascending=False, kind="stable")
    if not kinds.sum():
        return "No head has a sink at any token"
    named = [f"{share / kinds.sum():.1%} at {KIND_NAMES[kind]}" for kind, share in kinds.items() if share]
    return f"Of all sinks {', '.join(named)}"


def predictors(table: pd.DataFrame) -> str:
    """`table`: one model and target of the table of predictors, with something to tell apart."""
    every = over_all_lengths(table)
    name = recommended(every)
    if name is None:
        return "Nothing tells later sinks beyond their layer's rate"
    said = f"{PREDICTORS[name].capitalize()} tells later sinks (AUC {every.loc[name, 'auc']:.2f})"
    if name == "first_layer" or "first_layer" not in every.index:
        return said
    first = every.loc["first_layer"]
    how = "less" if first["gain_low"] > 0 and first["gain"] >= CLEAR_GAIN else "does not"
    return f"{said}; the first layer {how} ({first['auc']:.2f})"


def weakening(row: pd.Series) -> str:
    """`row`: of the table of weakening."""
    if pd.isna(row["last_length"]):
        return "The first layer has no sinks, so there is no correlation to weaken"
    if pd.isna(row["length"]) or pd.isna(row["fall_low"]):
        return "First-layer sinks are too few to tell where the correlation weakens"
    if row["fall_low"] <= 0:
        return "The correlation with the first layer surely falls at no length"
    if row["excess_fall_low"] <= 0:
        ends = f"from {row['before']:.1%} to {row['after']:.1%}"
        return f"The correlation falls {ends} at {row['length']:.0f} tokens, and so does its base rate"
    by = f"{100 * row['excess_fall']:.0f} points beyond its base rate"
    return f"The correlation with the first layer weakens at {row['length']:.0f} tokens, by {by}"


def layer_pairs(pairs: pd.DataFrame) -> str:
    """`pairs`: one model, threshold and length of the table of layer pairs."""
    known = pairs[pairs["p_b_given_a"].notna()]
    if known.empty:
        return "No layer has sinks that another could share"
    first = known["layer_a"] == pairs["layer_a"].min()
    clear = known["ci_low"] > known["p_b"]
    found = f"{clear.sum()} of {len(known)} ordered pairs of layers share sinks beyond the base rate"
    return f"{found}, {clear[first].sum() or 'none'} of them from layer {pairs['layer_a'].min()}"


def persistence(shares: pd.Series, n_tokens: int) -> str:
    """`shares`: of prompts in which each head is a sink."""
    every, none = (shares == 1).sum(), (shares == 0).sum()
    counts = f"{every} in every prompt, {len(shares) - every - none} in some, {none} in none"
    return f"Sinks at {n_tokens} tokens, of {len(shares)} heads: {counts}"


def by_set(shares: pd.Series, n_tokens: int) -> str:
    """`shares`: of heads that are sinks, by prompt set."""
    shares = shares.dropna()
    if shares.empty or shares.max() == 0:
        return f"No head is a sink in any set of prompts at {n_tokens} tokens"
    if shares.min() == shares.max():
        return f"At {n_tokens} tokens, sinks are {shares.max():.1%} of heads in {', '.join(shares.index)}"
    low, high = (f"{shares[name]:.1%} of heads ({name})" for name in (shares.idxmin(), shares.idxmax()))
    return f"At {n_tokens} tokens, sinks by set of prompts range from {low} to {high}"


def held_out(layers: pd.DataFrame) -> str:
    """`layers`: measured and predicted sink fractions per layer."""
    error = (layers["predicted"] - layers["measured"]).abs().groupby(layers["simulator"]).mean()
    named = [f"{said} by {100 * error[name]:.1f}" for name, said in SIMULATORS.items() if name in error]
    return f"SIMULATED sinks per layer miss the measured ones: {' points, '.join(named)}"


def timing(rows: pd.DataFrame) -> str:
    """`rows`: of the benchmark, with `is_noise`, see `figures.timing`."""
    plans = rows[rows["heads_replaced"] > 0]
    sure = plans[~plans["is_noise"] & (plans["speedup_vs_sdpa"] > 1)]
    if plans.empty:
        return "No heads were replaced, so only the baselines were timed"
    if sure.empty:
        return f"None of {len(plans)} timed plans is faster than SDPA beyond noise"
    best = sure.loc[sure["speedup_vs_sdpa"].idxmax()]
    at = f"{PHASES[best['phase']]} at {best['n_tokens']:,} tokens, KL {best['kl']:.1g}"
    are = "is" if len(sure) == 1 else "are"
    found = f"{len(sure)} of {len(plans)} timed plans {are} faster than SDPA beyond noise"
    return f"{found}, the fastest {best['speedup_vs_sdpa']:.2f} times ({at})"


def tradeoff(rows: pd.DataFrame) -> str:
    """As `timing`, of prefills, with what the plans cost."""
    plans = rows[rows["heads_replaced"] > 0]
    cost = f"; their KL is {plans['kl'].min():.1g} to {plans['kl'].max():.1g}" if len(plans) else ""
    return f"{timing(rows)}{cost}"


def bos(table: pd.DataFrame) -> str:
    """`table`: one model's table of settings of bos; the longest length that all have is compared."""
    every = table.groupby("n_tokens")["arm"].nunique()
    n = every[every == table["arm"].nunique()].index.max()
    rows = table[table["n_tokens"] == n]
    sure = (rows["excess_difference_low"] > 0) | (rows["excess_difference_high"] < 0)
    found = ", ".join(f"{row.mean_excess:.2f} ({row.arm})" for row in rows.itertuples())
    how = "changes" if sure.any() else "does not surely change"
    return f"A first special token {how} the sinks: mean excess at {n:,} tokens {found}"


def simulated(lengths: list[int], is_sink: np.ndarray) -> str:
    """`is_sink` (length, layer, head)."""
    ends = dict(zip(lengths, 100 * is_sink.mean((1, 2)), strict=True))
    at = [f"{ends[n]:.1f}% of heads at {n} tokens" for n in dict.fromkeys((lengths[0], lengths[-1]))]
    return f"SIMULATED, not measured: sinks are {' and '.join(at)}"


def comparison(table: pd.DataFrame) -> str:
    """`table`: one comparison of the table of comparisons."""
    known = table.dropna(subset="sink_percent")
    if known.empty:
        return "Sink percentages are undefined"
    shares = known.groupby("group", sort=False)["sink_percent"]
    spread = shares.max() - shares.min()
    if spread.max() == 0:  # There is one side, or all sides are alike.
        alike = shares.max()
        low, high = alike.idxmin(), alike.idxmax()
        if alike[low] < alike[high]:
            return f"Sinks are {alike[low]:.1f}% of heads ({low}) to {alike[high]:.1f}% ({high})"
        return f"Sinks are {alike[low]:.1f}% of heads {f'({low})' if len(alike) == 1 else 'throughout'}"
    group = spread.idxmax()
    widest = known[known["group"] == group].set_index("side")["sink_percent"]
    ends = dict.fromkeys((widest.idxmax(), widest.idxmin()))
    named = ", ".join(f"{widest[side]:.1f}% ({side})" for side in ends)
    return f"Sink heads differ most for {group}: {named}"
