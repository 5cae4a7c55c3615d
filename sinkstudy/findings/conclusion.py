"""The verdicts, and what to do."""

from sinkstudy.findings import verdicts as rules
from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import evidence, has, holds


def section(t: Tables) -> str:
    lines = []
    for model in t.models:
        hypothesis = rules.first_layer_hypothesis(t.overall(model))
        speed = rules.worth_optimizing(t.of("benchmark", model))
        sinks = rules.has_sinks(t.of("long_prompts", model), t.threshold)
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
            f"- **{model}**: {has(sinks)} The first-layer hypothesis {holds(hypothesis)}: {hypothesis.reason} "
            f"Strategy: {strategy}"
            + evidence(f"scores/{model}.csv", f"n_tokens>={rules.MIN_TOKENS}, over prompts per head")
            + evidence(f"correlation/{model}.csv", f"set=all, prompt=all, n_tokens empty, threshold={t.threshold:g}")
        )
    return "\n\n".join(["## Conclusion and strategy", "\n".join(lines)])
