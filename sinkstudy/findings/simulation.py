"""Simulated matrices beside measured models."""

from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import percent, source, table


def section(t: Tables) -> str:
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
            table(rows),
            source("comparison.csv", *(f"simulation/{preset}.csv" for preset in t.simulation["preset"].unique())),
        ]
    )
