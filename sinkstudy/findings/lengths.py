"""Sinks and scores against prompt length, beside the null."""

from sinkstudy.findings import verdicts as rules
from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import evidence, figure, number, percent, source, span, table


def section(t: Tables) -> str:
    rows = []
    for model in t.models:
        curve = t.curve(model)
        for _, row in curve[curve["n_tokens"].isin((2, 5, 10, 24, 64, 128, 256, 512, 1024))].iterrows():
            n = int(row["n_tokens"])
            rows.append(
                {
                    "model": model,
                    "tokens": n,
                    "prompts": int(row["prompts"]),
                    "sink %": percent(row["sink_fraction"]),
                    "95% interval": span(row, "sink_fraction", percent),
                    "mean score": f"{row['mean_score']:.3f}",
                    "null": f"{row['null_score']:.3f}",
                    "mean excess": number(row["mean_excess"]),
                    "95% interval of the excess": span(row, "mean_excess", number),
                    "evidence": evidence(f"curves/{model}.csv", f"set=all, threshold={t.threshold:g}, n_tokens={n}"),
                }
            )
    lines = [
        f"- **{model}**: {rules.length_effect(t.of('lengths', model)).reason}"
        + evidence(f"lengths/{model}.csv", "first and last length, mean over the prompts that reach the last")
        for model in t.models
    ]
    return "\n\n".join(
        [
            "## Impact of sequence length, beside the null",
            "Prompts are cut to each length (causal attention over the first tokens does not depend on later ones). "
            "Intervals are over prompts, undefined where a single one reaches the length.",
            table(rows),
            "\n".join(lines),
            *(figure(f"head_curves_{model}", f"{model}: every head against prompt length.") for model in t.models),
            *(
                figure(f"lengths_{model}", f"{model}: sink percentage at each threshold, and scores beside the null.")
                for model in t.models
            ),
            source(*(f"{name}/{model}.csv" for model in t.models for name in ("curves", "lengths"))),
        ]
    )
