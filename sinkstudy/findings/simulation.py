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
            _presets(t),
            table(rows),
            *(
                figure(f"simulated_{preset}", f"SIMULATED {preset}, not measured: scores and sink decisions.")
                for preset in t.simulation["preset"].unique()
            ),
            source(
                "comparison.csv",
                *(f"simulation/{preset}.csv" for preset in t.simulation["preset"].unique()),
            ),
        ]
    )


def _presets(t: Tables) -> str:
    """What each preset is. Nothing simulated was measured on a model."""
    fitted = t.simulation.groupby("preset", sort=False)["fitted_to"].first()
    lines = [
        f"- **simulated {preset}**: "
        + (
            "the formula of the original study. Its decisions are drawn independently per layer and head, so its "
            "correlation is its base rate by construction."
            if model is None or model != model
            else f"fitted to the captures of {model} (layer profile, tendency of each head and effect of length, on "
            "top of uniform attention's score) and scaled to its own layers and heads. It says how that model would "
            "look at this size, not what a larger model does."
        )
        for preset, model in fitted.items()
    ]
    return "Nothing in the simulated rows was measured on a model.\n\n" + "\n".join(lines)
