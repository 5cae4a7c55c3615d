"""Scores against prompt length, beside the null."""

from sinkstudy import conclusions as rules
from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import evidence, figure, number, percent, source, table


def section(t: Tables) -> str:
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
                        "mean excess": number(part["mean_excess"].mean()),
                        "evidence": evidence(
                            f"lengths/{model}.csv", f"n_tokens={n}, threshold={t.threshold:g}, mean over prompts"
                        ),
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
            "Prompts are cut to each length (causal attention over the first tokens does not depend on later ones).",
            table(rows),
            "\n".join(lines),
            *(figure(f"head_curves_{model}", f"{model}: every head against prompt length.") for model in t.models),
            *(
                figure(f"lengths_{model}", f"{model}: sink percentage at each threshold, and scores beside the null.")
                for model in t.models
            ),
            source(*(f"lengths/{model}.csv" for model in t.models)),
        ]
    )
