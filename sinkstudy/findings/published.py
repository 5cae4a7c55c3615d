"""Figures published elsewhere, and what was measured here under the same threshold and length."""

import pandas as pd

from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import evidence, percent, source, table


def section(t: Tables) -> str:
    if t.published.empty:
        return "## Published figures\n\nNo published figures were given."
    rows = [
        {
            "quantity": row["quantity"].replace("_", " "),
            "model": row["model"],
            "value": f"{row['value']:g}{'%' if row['unit'] == '%' else ' ×'}",
            "threshold": _or(row["threshold"], "–"),
            "tokens": _or(row["n_tokens"], "not given" if row["quantity"] in _SINKS else "–"),
            "dtype": _or(row["dtype"], "not given" if row["quantity"] in _SINKS else "–"),
            "conditions": _or(row["conditions"], "not given"),
            "source": f"[{row['source']}]({row['link']})" if pd.notna(row["link"]) else row["source"],
            "checked": row["checked"],
            "evidence": evidence(
                "published.csv", f"quantity={row['quantity']}, model={row['model']}, value={row['value']:g}", folder=""
            ),
        }
        for _, row in t.published.iterrows()
    ]
    return "\n\n".join(
        [
            "## Published figures beside measured ones",
            "Published by others on other models; nothing in the first table was measured here. `checked` says where "
            "the figure was read; one that is only quoted could not be reached at its source.",
            table(rows),
            "Measured here at the same threshold and length (means over the prompts that reach it):",
            table(_measured(t)),
            source(*(f"curves/{model}.csv" for model in t.models)),
        ]
    )


_SINKS = ("sink_fraction", "correlation")


def _or(value: object, missing: str) -> str:
    return missing if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value)


def _measured(t: Tables) -> list[dict[str, object]]:
    rows = []
    conditions = t.published[t.published["quantity"].isin(_SINKS)][["threshold", "n_tokens"]].dropna().drop_duplicates()
    for threshold, n in conditions.itertuples(index=False):
        for model in t.models:
            curve = t.of("curves", model)
            here = curve[(curve["set"] == "all") & (curve["threshold"] == threshold) & (curve["n_tokens"] == n)]
            for _, row in here.iterrows():
                rows.append(
                    {
                        "model": model,
                        "threshold": f"{threshold:g}",
                        "tokens": int(n),
                        "dtype": t.provenance[model]["dtype"],
                        "sink fraction": percent(row["sink_fraction"]),
                        "correlation": percent(row["p_later_given_first"]),
                        "base rate": percent(row["p_later"]),
                        "evidence": evidence(
                            f"curves/{model}.csv", f"set=all, threshold={threshold:g}, n_tokens={int(n)}"
                        ),
                    }
                )
    return rows
