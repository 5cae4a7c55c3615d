"""Simulated matrices beside measured models."""

from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import evidence, figure, percent, source, table


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
            "evidence": evidence(
                "comparison.csv",
                f"comparison=measured_vs_simulated, group={row['group']}, side={row['side']}",
            ),
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
            *(
                figure(f"simulated_{preset}", f"SIMULATED {preset}, not measured: scores and sink decisions.")
                for preset in t.simulation["preset"].unique()
            ),
            source("comparison.csv", *(f"simulation/{preset}.csv" for preset in t.simulation["preset"].unique())),
        ]
    )
