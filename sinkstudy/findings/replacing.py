"""What replacing heads is worth: whether it is harmless, more so than replacing others, and whether it is faster.

A gain must be surely worth having in spite of the number of ways that were tried: the lower end of its interval,
corrected for that number, and no more of it than its ceiling allows, lies above both WORTHWHILE_SPEEDUP and the upper
end of SDPA's own speedup over itself.
"""

import pandas as pd

from sinkstudy.findings.rules import Verdict, numbers_of
from sinkstudy.findings.text import interval
from sinkstudy.stats.speedups import with_sure_speedup

HARMLESS_KL = 1e-2
HARMLESS_AGREEMENT = 0.98
WORTHWHILE_SPEEDUP = 1.02
# The findings say so where no plan replaces this share of the heads within this perplexity ratio.
WANTED_SHARE, WANTED_PERPLEXITY = 0.25, 1.01
PHASES = {"prefill": "prefill", "decode": "decoding"}
HARMLESS = f"KL at most {HARMLESS_KL:g} and top-1 agreement at least {HARMLESS_AGREEMENT:g}"
OTHER_HEADS = {"random": "drawn at random", "no_sinks": "they are those with the lowest sink scores"}
CELL = ["phase", "n_tokens", "batch"]


def skippable(skipping: pd.DataFrame) -> Verdict:
    """Whether the heads of some policy can be replaced while predictions stay what they were, and as many random heads
    and heads that are no sinks of the same layers cannot be replaced as cheaply. `skipping`: rows of that table.

    Judged is the policy that replaces most heads, of those that are harmless where there are any.
    """
    own = skipping[skipping["chosen_by"] == "policy"] if len(skipping) else skipping
    if own.empty:
        return Verdict(None, "no policy found a head to replace.")
    safe = own[(own["kl_high"] <= HARMLESS_KL) & (own["top1_agreement"] >= HARMLESS_AGREEMENT)]
    row = safe.loc[safe["heads_replaced"].idxmax()] if len(safe) else own.loc[own["kl"].idxmin()]
    same = (skipping[["policy", "n_tokens", "strategy"]] == row[["policy", "n_tokens", "strategy"]]).all(axis=1)
    others = skipping[same].set_index("chosen_by").loc[list(OTHER_HEADS)]
    text = (
        f"{row['heads_replaced']:.0f} heads ({row['strategy']} with policy {row['policy']}, texts of "
        f"{row['n_tokens']:.0f} tokens) are replaced at {_cost(row)}; as many of the same layers at "
        + " and at ".join(f"{_cost(others.loc[name])} if {said}" for name, said in OTHER_HEADS.items())
    )
    numbers = numbers_of(row, "heads_replaced kl kl_high top1_agreement perplexity_ratio n_tokens")
    for name, other in others.iterrows():
        numbers |= other[["kl", "perplexity_ratio", "kl_beyond_low"]].astype(float).add_prefix(f"{name}_").to_dict()
    holds, why = False, f"not even the mildest policy keeps {HARMLESS}"
    if len(safe):
        holds = bool((others["kl_beyond_low"] > 0).all())
        why = "other heads surely cost more" if holds else "that these heads are sinks is not what makes them cheap"
    return Verdict(holds, f"{text}: {why}.", numbers, row=row)


def worth_replacing(benchmark: pd.DataFrame, comparisons: int | None = None) -> Verdict:
    """Whether some way to replace heads is faster than SDPA and leaves predictions alone.

    `comparisons`: how many ways the correction is for; all of `benchmark` unless this is a part of a larger table. The
    fastest row is judged: of those with a sure gain where there are any.
    """
    tried = benchmark[benchmark["heads_replaced"] > 0] if len(benchmark) else benchmark
    if tried.empty:
        why = "found a head to replace at any length" if len(benchmark) else "was timed"
        return Verdict(None, f"no policy {why}.")
    if tried["speedup_vs_sdpa"].isna().all():
        return Verdict(None, "SDPA does not run this model, so there is no speedup over it.")
    safe = harmless_ways(benchmark)
    if safe.empty:
        return Verdict(False, f"no timed way to replace heads (of {len(_distinct(tried))}) keeps {HARMLESS}.")
    comparisons = comparisons or len(safe)
    known = _corrected(safe, comparisons)
    if known.empty:
        return Verdict(None, "SDPA was not timed twice in two rounds, so how far it differs from itself is unknown.")
    sure = known[known["is_sure"]]
    row = (sure if len(sure) else known).sort_values("speedup_vs_sdpa").iloc[-1]
    found, why = f"the fastest of {len(safe)} harmless ways", ": this is noise"
    if len(sure):
        found, why = f"{len(sure)} of {len(safe)} harmless ways are surely faster, and the fastest of them", ""
    elif row["speedup_vs_sdpa"] <= WORTHWHILE_SPEEDUP:
        why = ": not worth having"
    elif row["speedup_low"] > row["ceiling"]:
        why = ": more than its ceiling allows, so this is noise"
    text = (
        f"{found} ({row['strategy']} with policy {row['policy']}, {PHASES[row['phase']]} at {row['n_tokens']:.0f} "
        f"tokens, {row['heads_replaced']:.0f} heads) runs at {row['speedup_vs_sdpa']:.2f} times SDPA's speed (95% "
        f"interval {interval(row, 'speedup', '.2f')}, corrected for {comparisons} comparisons from "
        f"{row['sure_speedup']:.2f}; ceiling {row['ceiling']:.2f}; SDPA timed twice: up to "
        f"{row['again_high']:.2f}){why}."
    )
    names = "speedup_vs_sdpa speedup_low speedup_high ceiling kl top1_agreement heads_replaced n_tokens"
    numbers = {"ways": len(safe)} | numbers_of(row, f"{names} sure_speedup again_high")
    return Verdict(len(sure) > 0, text, numbers, row=row)


def faster_at_a_price(benchmark: pd.DataFrame) -> pd.Series | None:
    """The fastest row, of those with a sure gain, of a plan of policy `budget`, harmless or not: its price was asked
    for."""
    ways = _ways(benchmark) if len(benchmark) else benchmark
    if ways.empty:
        return None
    known = _corrected(ways[ways["policy"] == "budget"], len(ways))
    sure = known[known["is_sure"]].sort_values("speedup_vs_sdpa")
    return sure.iloc[-1] if len(sure) else None


def worth_by_length(benchmark: pd.DataFrame) -> list[tuple[str, Verdict]]:
    """The same for each phase and length (smallest batch), by its name, corrected for the ways of all of them."""
    if benchmark.empty:
        return []
    rows = benchmark[benchmark["batch"] == benchmark["batch"].min()]
    ways, cells = len(harmless_ways(rows)), rows.groupby(["phase", "n_tokens"], sort=False)
    return [(f"{PHASES[phase]} at {n} tokens", worth_replacing(cell, ways)) for (phase, n), cell in cells]


def keeps_a_share(benchmark: pd.DataFrame) -> bool:
    """Whether some plan of policy `budget` replaces WANTED_SHARE of the heads or more, and stays at WANTED_PERPLEXITY
    or below at every length at which it was timed."""
    if benchmark.empty:
        return False
    plans = benchmark[(benchmark["policy"] == "budget") & (benchmark["head_fraction"] >= WANTED_SHARE)]
    highest = plans.groupby(["strategy", "heads_replaced"])["perplexity_ratio"].max()
    return bool((highest <= WANTED_PERPLEXITY).any())


def harmless_ways(benchmark: pd.DataFrame) -> pd.DataFrame:
    """The timed ways in which heads were replaced and predictions stayed what they were; policies that amount to the
    same count once. `again_high`: the upper end of SDPA's speedup over itself in the same cell."""
    ways = _ways(benchmark)
    return ways[(ways["kl"] <= HARMLESS_KL) & (ways["top1_agreement"] >= HARMLESS_AGREEMENT)]


def _ways(benchmark: pd.DataFrame) -> pd.DataFrame:
    twice = benchmark[(benchmark["strategy"] == "sdpa") & (benchmark["policy"] == "again")]
    rows = benchmark.merge(twice[[*CELL, "speedup_high"]].rename(columns={"speedup_high": "again_high"}), "left", CELL)
    return _distinct(rows[(rows["heads_replaced"] > 0) & rows["speedup_vs_sdpa"].notna()])


def _corrected(rows: pd.DataFrame, comparisons: int) -> pd.DataFrame:
    """Those of a known gain, with the speedup that is sure in spite of so many comparisons, and whether it is worth
    having (`is_sure`)."""
    rows = with_sure_speedup(rows.dropna(subset=["speedup_low", "again_high"]), comparisons)
    return rows.assign(is_sure=rows["credited"] > rows["again_high"].clip(lower=WORTHWHILE_SPEEDUP))


def _cost(row: pd.Series) -> str:
    reach = interval(row, "kl", ".2g")
    return f"a KL of {row['kl']:.2g} (95% interval {reach}) and perplexity x {row['perplexity_ratio']:.4f}"


def _distinct(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.drop_duplicates([*CELL, "strategy", "heads_replaced", "median_s", "speedup_vs_sdpa"])
