"""What was measured of each model, per prompt set."""

from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import count, evidence, figure, number, percent, source, table


def section(t: Tables) -> str:
    return "\n\n".join(_model(t, model) for model in t.models)


def _model(t: Tables, model: str) -> str:
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
                "sink heads": count(part["sink_share"].sum()),
                "sink %": percent(part["sink_share"].sum(), len(part)),
                "mean score": f"{part['mean_sink_score'].mean():.3f}",
                "null": f"{part['mean_null_score'].mean():.3f}",
                "mean excess": number(part["mean_excess_score"].mean()),
                "correlation": percent(row["p_later_given_first"]),
                "base rate": percent(row["p_later"]),
                "evidence": evidence(
                    f"heads/{model}.csv", f"set={name}, over heads: sum of sink_share, means of scores"
                )
                + evidence(
                    f"correlation/{model}.csv", f"set={name}, prompt=all, n_tokens empty, threshold={t.threshold:g}"
                ),
            }
        )
    p = t.provenance[model]
    origin = f"`{p['source']}` ({p['revision'][:23]}), {p['dtype']}, bos {p['bos']}, {p['device']}"
    return "\n\n".join(
        [
            f"## Results: {model}",
            f"{origin}. Sink heads are averages over the prompts of a set. Correlation: of the later layers, the "
            "share in which the head index of a first-layer sink is a sink again; base rate: the share of all later "
            "heads.",
            table(rows),
            figure(
                f"heatmap_{model}_all",
                f"{model}: mean sink score of every head, and what of it uniform attention does not explain.",
            ),
            figure(f"layers_{model}", f"{model}: the same by layer, every head a dot; bars: 95% over prompts."),
            source(f"heads/{model}.csv", f"correlation/{model}.csv"),
        ]
    )
