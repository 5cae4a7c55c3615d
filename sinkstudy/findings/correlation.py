"""Whether first-layer sinks foretell later sinks."""

import pandas as pd

from sinkstudy.findings import verdicts as rules
from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import evidence, interval, number, percent, source, table
from sinkstudy.stats.comparison import short_and_long_sets


def section(t: Tables) -> str:
    short, long = short_and_long_sets(t.heads)
    rows = []
    for model in t.models:
        for name in dict.fromkeys((short, long, "all")):
            for threshold in sorted(t.correlation["threshold"].unique()):
                row = t.overall(model, name, threshold)
                rows.append(
                    {
                        "model": model,
                        "set": name,
                        "threshold": f"{threshold:g}",
                        "first-layer sinks": int(row["first_layer_sinks"]),
                        "correlation": percent(row["p_later_given_first"]),
                        "95% interval": interval(row),
                        "base rate": percent(row["p_later"]),
                        "lift": number(row["lift"]),
                        "phi": number(row["phi"]),
                        "p": "undefined" if pd.isna(row["p_value"]) else f"{row['p_value']:.3g}",
                        "evidence": evidence(
                            f"correlation/{model}.csv",
                            f"set={name}, prompt=all, n_tokens empty, threshold={threshold:g}",
                        ),
                    }
                )
    lines = [
        f"- **{model}**: {rules.first_layer_hypothesis(t.overall(model)).reason}"
        + evidence(f"correlation/{model}.csv", f"set=all, prompt=all, n_tokens empty, threshold={t.threshold:g}")
        for model in t.models
    ]
    return "\n\n".join(
        [
            "## Strength of the first-layer correlation",
            "First-layer sinks are counted over all prompts of the set. A correlation no higher than the base rate "
            "says nothing about the first layer.",
            table(rows),
            "\n".join(lines),
            source(*(f"correlation/{model}.csv" for model in t.models)),
        ]
    )
