"""Heads that are sinks whatever the prompt, and heads that depend on the kind of prompt."""

from sinkstudy.findings import verdicts as rules
from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import evidence, figure, source, table


def section(t: Tables) -> str:
    rows = [row for model in t.models for row in _model(t, model)]
    drawn = [model for model in t.models if len(t.of("persistence", model))]
    return "\n\n".join(
        [
            "## Consistent heads, and heads that depend on the kind of prompt",
            "Prompts are cut to the same length; shorter ones are left out. A head depends on the set clearly where "
            f"sets relabelled over prompts make its shares differ as much in fewer than {100 * rules.SIGNIFICANT:.0f}% "
            "of draws, adjusted for the number of heads."
            if rows
            else "No prompt is long enough to compare heads at a common length.",
            *([table(rows)] if rows else []),
            *(
                figure(f"{kind}_{model}", caption.format(model=model))
                for model in drawn
                for kind, caption in (
                    ("persistence", "{model}: the share of prompts in which each head is a sink."),
                    ("domains", "{model}: the same per prompt set, for heads that are sinks in some prompts."),
                )
            ),
            source(*(f"{name}/{model}.csv" for model in t.models for name in ("persistence", "domains"))),
        ]
    )


def _model(t: Tables, model: str) -> list[dict[str, object]]:
    domains = t.of("domains", model)
    domains = domains[domains["threshold"] == t.threshold]
    rows = []
    for n, part in domains.groupby("n_tokens"):
        some = part[(part["sets_where_sink"] > 0) & (part["sets_where_sink"] < part["sets"])]
        rows.append(
            {
                "model": model,
                "tokens": int(n),
                "prompts (sets)": f"{int(part['prompts'].iloc[0])} ({int(part['sets'].iloc[0])})",
                "heads": len(part),
                "sinks in every prompt": int((part["sink_share"] == 1).sum()),
                "in some prompts": int(((part["sink_share"] > 0) & (part["sink_share"] < 1)).sum()),
                "in none": int((part["sink_share"] == 0).sum()),
                "in some sets only": len(some),
                "clearly set-dependent": int((part["q_value"] < rules.SIGNIFICANT).sum()),
                "evidence": evidence(
                    f"domains/{model}.csv", f"n_tokens={int(n)}, threshold={t.threshold:g}, counted over heads"
                ),
            }
        )
    return rows
