"""The findings report: Markdown in which every number comes from a table and says from which."""

from dataclasses import dataclass

import pandas as pd

from sinkstudy import conclusions as rules
from sinkstudy.comparison import short_and_long_sets
from sinkstudy.conclusions import Verdict


@dataclass(frozen=True)
class Tables:
    """The study's tables, all models together, as read from the result files."""

    scores: pd.DataFrame
    heads: pd.DataFrame
    lengths: pd.DataFrame
    correlation: pd.DataFrame
    comparison: pd.DataFrame
    simulation: pd.DataFrame
    benchmark: pd.DataFrame
    verification: pd.DataFrame
    threshold: float

    def of(self, name: str, model: str) -> pd.DataFrame:
        table = getattr(self, name)
        return table[table["model"] == model]

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(self.heads["model"]))


def percent(part: float, whole: float = 1.0) -> str:
    """`part` of `whole` in percent with two decimals, as the original study prints it; `undefined` for NaN."""
    return "undefined" if pd.isna(part) else f"{100 * part / whole:.2f}%"


def markdown(tables: Tables, provenance: dict[str, dict[str, str]]) -> str:
    """The whole report. `provenance`: per model, the attributes of its captures."""
    sections = [
        _overview(tables),
        *(_model(tables, model, provenance[model]) for model in tables.models),
        _length_impact(tables),
        _sink_positions(tables),
        _correlation(tables),
        _simulation(tables),
        _optimization(tables),
        _length_threshold(tables),
        _conclusion(tables),
        _exactness(tables),
        _methods(tables),
    ]
    return "\n\n".join(sections) + "\n"


def _overview(t: Tables) -> str:
    lines = [
        "# Attention sinks: findings",
        "Is a head that is a sink in the first layer a sink at the same index in later layers, and can inference use "
        "sinks to run faster without changing what the model says? "
        f"Here a head counts as a sink at a sink score of {t.threshold:g} or more. Uniform causal attention reaches a "
        "score of its own (the null), high for short prompts; the excess score leaves it out.",
    ]
    for model in t.models:
        sinks = rules.has_sinks(t.of("scores", model), t.threshold)
        hypothesis = rules.first_layer_hypothesis(_overall(t, model))
        speed = rules.worth_optimizing(t.of("benchmark", model))
        lines.append(
            f"- **{model}**: {_has(sinks)} The first-layer hypothesis {_holds(hypothesis)}; "
            f"replacing sink heads {_pays(speed)}."
        )
    return "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:])


def _model(t: Tables, model: str, provenance: dict[str, str]) -> str:
    heads, correlation = t.of("heads", model), t.of("correlation", model)
    correlation = correlation[(correlation["threshold"] == t.threshold) & (correlation["prompt"] == "all")]
    rows = []
    for name, part in heads.groupby("set", sort=False):
        row = correlation[(correlation["set"] == name) & correlation["n_tokens"].isna()].iloc[0]
        rows.append(
            {
                "set": name,
                "prompts": int(part["prompts"].iloc[0]),
                "mean tokens": f"{part['mean_tokens'].iloc[0]:.1f}",
                "total heads": len(part),
                "sink heads": _count(part["sink_share"].sum()),
                "sink %": percent(part["sink_share"].sum(), len(part)),
                "mean score": f"{part['mean_sink_score'].mean():.3f}",
                "null": f"{part['mean_null_score'].mean():.3f}",
                "mean excess": _number(part["mean_excess_score"].mean()),
                "correlation": percent(row["p_later_given_first"]),
                "base rate": percent(row["p_later"]),
            }
        )
    p = provenance
    origin = f"`{p['source']}` ({p['revision'][:23]}), {p['dtype']}, bos {p['bos']}, {p['device']}"
    return "\n\n".join(
        [
            f"## Results: {model}",
            f"{origin}. Sink heads are averages over the prompts of a set. Correlation: of the later layers, the "
            "share in which the head index of a first-layer sink is a sink again; base rate: the share of all later "
            "heads.",
            _table(rows),
            _source(f"heads/{model}.csv", f"correlation/{model}.csv"),
        ]
    )


def _length_impact(t: Tables) -> str:
    at = t.lengths[t.lengths["threshold"] == t.threshold]
    rows = []
    for model in t.models:
        mine = at[at["model"] == model]
        for n in (2, 5, 10, 24, 64, 128, 256, 512, 1024):
            part = mine[mine["n_tokens"] == n]
            if len(part):
                rows.append(
                    {
                        "model": model,
                        "tokens": n,
                        "prompts": len(part),
                        "sink %": percent(part["sink_fraction"].mean()),
                        "mean score": f"{part['mean_score'].mean():.3f}",
                        "null": f"{part['null_score'].mean():.3f}",
                        "mean excess": _number(part["mean_excess"].mean()),
                    }
                )
    lines = [f"- **{model}**: {rules.length_effect(t.of('lengths', model)).reason}" for model in t.models]
    return "\n\n".join(
        [
            "## Impact of sequence length, beside the null",
            "Prompts are cut to each length (causal attention over the first tokens does not depend on later ones).",
            _table(rows),
            "\n".join(lines),
            _source(*(f"lengths/{model}.csv" for model in t.models)),
        ]
    )


def _correlation(t: Tables) -> str:
    short, long = short_and_long_sets(t.heads)
    rows = []
    for model in t.models:
        for name in dict.fromkeys((short, long, "all")):
            for threshold in sorted(t.correlation["threshold"].unique()):
                row = _overall(t, model, name, threshold)
                rows.append(
                    {
                        "model": model,
                        "set": name,
                        "threshold": f"{threshold:g}",
                        "first-layer sinks": int(row["first_layer_sinks"]),
                        "correlation": percent(row["p_later_given_first"]),
                        "95% interval": _interval(row),
                        "base rate": percent(row["p_later"]),
                        "lift": _number(row["lift"]),
                        "phi": _number(row["phi"]),
                        "p": "undefined" if pd.isna(row["p_value"]) else f"{row['p_value']:.3g}",
                    }
                )
    lines = [f"- **{model}**: {rules.first_layer_hypothesis(_overall(t, model)).reason}" for model in t.models]
    return "\n\n".join(
        [
            "## Strength of the first-layer correlation",
            "First-layer sinks are counted over all prompts of the set. A correlation no higher than the base rate "
            "says nothing about the first layer.",
            _table(rows),
            "\n".join(lines),
            _source(*(f"correlation/{model}.csv" for model in t.models)),
        ]
    )


def _simulation(t: Tables) -> str:
    if t.simulation.empty:
        return "## Simulated matrices\n\nThe configuration names no simulation."
    part = t.comparison[t.comparison["comparison"] == "measured_vs_simulated"]
    rows = [
        {
            "tokens": row["group"].split()[0],
            "setting": row["side"],
            "kind": row["kind"],
            "sink %": f"{row['sink_percent']:.2f}%",
            "mean score": f"{row['mean_score']:.3f}",
            "correlation": percent(row["correlation_percent"], 100),
        }
        for _, row in part.iterrows()
    ]
    return "\n\n".join(
        [
            "## Simulated matrices beside measured models",
            "The simulated rows follow the formula of the original study and were measured on no model. Their "
            "decisions are drawn independently per layer and head, so their correlation is their base rate by "
            "construction.",
            _table(rows),
            _source("comparison.csv", *(f"simulation/{preset}.csv" for preset in t.simulation["preset"].unique())),
        ]
    )


def _optimization(t: Tables) -> str:
    rows = [
        {
            "model": row["model"],
            "tokens": int(row["n_tokens"]),
            "batch": int(row["batch"]),
            "strategy": row["strategy"],
            "policy": row["policy"],
            "heads replaced": f"{int(row['heads_replaced'])} ({percent(row['head_fraction'])})",
            "median ms": f"{1e3 * row['median_s']:.2f} ± {1e3 * row['iqr_s'] / 2:.2f}",
            "vs SDPA": "not run" if pd.isna(row["speedup_vs_sdpa"]) else f"{row['speedup_vs_sdpa']:.2f}",
            "vs eager": f"{row['speedup_vs_eager']:.2f}",
            "ceiling": f"{row['ceiling']:.2f}",
            "KL": f"{row['kl']:.1e}",
            "top-1": percent(row["top1_agreement"]),
            "perplexity": f"× {row['perplexity_ratio']:.3f}",
        }
        for _, row in t.benchmark.iterrows()
    ]
    lines = [f"- **{model}**: {rules.worth_optimizing(t.of('benchmark', model)).reason}" for model in t.models]
    device = ", ".join(t.benchmark["device"].unique())
    return "\n\n".join(
        [
            "## Optimization potential, as measured",
            f"Whole-model prefill on {device}, all variants in turn in one process; ± half the interquartile range. "
            "The ceiling is the speedup if every saved operation were saved perfectly. Quality is measured against "
            "the unmodified model on held-out text.",
            _table(rows),
            "\n".join(lines),
            _source(*(f"benchmark/{model}.csv" for model in t.models)),
        ]
    )


def _length_threshold(t: Tables) -> str:
    lines = []
    for model in t.models:
        part = t.of("correlation", model)
        part = part[(part["threshold"] == t.threshold) & (part["set"] == "all")]
        lines.append(f"- **{model}**: {rules.length_threshold(part).reason}")
    return "\n\n".join(["## Length threshold", "\n".join(lines), _source(*(f"correlation/{m}.csv" for m in t.models))])


def _conclusion(t: Tables) -> str:
    lines = []
    for model in t.models:
        hypothesis = rules.first_layer_hypothesis(_overall(t, model))
        speed = rules.worth_optimizing(t.of("benchmark", model))
        sinks = rules.has_sinks(t.of("scores", model), t.threshold)
        if speed.holds:
            strategy = "replace heads with the strategy and policy of the row named under optimization potential."
        elif sinks.holds and speed.holds is False:
            strategy = "leave attention as it is: the sinks are real, but replacing them did not pay here."
        elif sinks.holds:
            strategy = "leave attention as it is: the sinks are real, but no policy found a head to replace."
        elif sinks.holds is False:
            strategy = "leave attention as it is: there are no sinks to use."
        else:
            strategy = "measure on longer prompts first: these say nothing about sinks."
        lines.append(
            f"- **{model}**: {_has(sinks)} The first-layer hypothesis {_holds(hypothesis)}: {hypothesis.reason} "
            f"Strategy: {strategy}"
        )
    return "\n\n".join(["## Conclusion and strategy", "\n".join(lines)])


def _exactness(t: Tables) -> str:
    lines = []
    for model in t.models:
        part = t.of("verification", model)
        worst = part.loc[part["max_mass_difference"].idxmax()]
        lines.append(
            f"- **{model}**: largest difference from eager attention {worst['max_mass_difference']:.1e} (prompt "
            f"`{worst['prompt']}`, {int(worst['n_tokens'])} tokens), over {len(part)} recomputed prompts."
        )
    sources = _source(*(f"verification/{model}.csv" for model in t.models))
    return "\n\n".join(["## Exactness of the captures", "\n".join(lines), sources])


def _sink_positions(t: Tables) -> str:
    """Which of the first positions is the sink, where one is: the first token in most models, not in all."""
    lines = []
    for model in t.models:
        scores = t.of("scores", model)
        strong = scores[scores["position_score"] >= t.threshold]
        if strong.empty:
            lines.append(
                f"- **{model}**: no head puts {t.threshold:g} of its attention on one of the first four tokens."
            )
            continue
        shares = strong["strongest_position"].astype(int).value_counts(normalize=True).sort_index()
        text = ", ".join(f"{percent(share)} on position {position}" for position, share in shares.items())
        lines.append(f"- **{model}**: of {len(strong)} cases (head and prompt) of {t.threshold:g} or more, {text}.")
    note = "Attention of the queries after the fourth token on each of the first four positions."
    sources = _source(*(f"scores/{model}.csv" for model in t.models))
    return "\n\n".join(["## Where the sink is", note, "\n".join(lines), sources])


def _methods(t: Tables) -> str:
    return "\n\n".join(
        [
            "## Methods and limits",
            "Sink score: attention mass on the first token, averaged over queries. Null: that of uniform causal "
            "attention, H_n / n. Excess: (score - null) / (1 - null). Intervals: 95% percentile bootstrap over "
            "prompts. p: one-sided permutation of head labels within later layers.",
            f"Rules of the conclusions. Sinks: in at least half of the prompts of {rules.MIN_TOKENS} tokens or more. "
            f"Length effect: mean excess changes by {rules.SMALL_EXCESS_CHANGE:g} or more. Hypothesis: correlation "
            f"of at least {100 * rules.HOLDS_AT:.0f}%, p below {rules.SIGNIFICANT:g}, interval above the base rate. "
            f"Worth optimizing: speedup of {rules.WORTHWHILE_SPEEDUP:g} or more over SDPA at KL at most "
            f"{rules.HARMLESS_KL:g} and top-1 agreement at least {rules.HARMLESS_AGREEMENT:g}.",
            "The reference model is small and trained on a synthetic task; its numbers say how sinks behave, not how "
            "large models do. Timings are of this machine.",
        ]
    )


def _overall(t: Tables, model: str, set_name: str = "all", threshold: float | None = None) -> pd.Series:
    """The correlation row over all prompts of a set at their own lengths."""
    rows = t.of("correlation", model)
    level = t.threshold if threshold is None else threshold
    rows = rows[(rows["set"] == set_name) & (rows["prompt"] == "all") & rows["n_tokens"].isna()]
    return rows[rows["threshold"] == level].iloc[0]


def _has(verdict: Verdict) -> str:
    start = {True: "has sinks", False: "has no sinks", None: "cannot be judged"}[verdict.holds]
    return f"{start}: {verdict.reason}"


def _holds(verdict: Verdict) -> str:
    return {True: "holds", False: "does not hold", None: "cannot be tested"}[verdict.holds]


def _pays(verdict: Verdict) -> str:
    return {True: "pays", False: "does not pay", None: "was not possible"}[verdict.holds]


def _interval(row: pd.Series) -> str:
    return "undefined" if pd.isna(row["ci_low"]) else f"{percent(row['ci_low'])} to {percent(row['ci_high'])}"


def _number(value: float) -> str:
    # Adding zero turns the -0.000 of a tiny negative number into 0.000.
    return "undefined" if pd.isna(value) else f"{round(value, 3) + 0:.3f}"


def _count(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"


def _table(rows: list[dict[str, object]]) -> str:
    if not rows:
        return "Nothing to tabulate."
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([str(row[key]) for key in head] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _source(*paths: str) -> str:
    return "Source: " + ", ".join(f"`results/{path}`" for path in paths) + "."
