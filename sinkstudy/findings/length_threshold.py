"""The length at which the correlation weakens."""

from sinkstudy.findings import verdicts as rules
from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import evidence, figure, source


def section(t: Tables) -> str:
    lines = []
    for model in t.models:
        rows = t.of("weakening", model)
        verdict = rules.weakens(rows[rows["threshold"] == t.threshold].iloc[0])
        lines.append(
            f"- **{model}**: {verdict.reason}" + evidence(f"weakening/{model}.csv", f"threshold={t.threshold:g}")
        )
    return "\n\n".join(
        [
            "## Length threshold",
            "Where the correlation, taken at every prefix length at which uniform attention stays below the threshold, "
            "is best split into a part before and a part after (a single change point by least squares, each length "
            "weighted by its first-layer sinks). Intervals repeat the whole estimate on resampled prompts.",
            "\n".join(lines),
            *(
                figure(f"weakening_{model}", f"{model}: correlation and base rate at every length, with 95% intervals.")
                for model in t.models
            ),
            source(*(f"weakening/{model}.csv" for model in t.models)),
        ]
    )
