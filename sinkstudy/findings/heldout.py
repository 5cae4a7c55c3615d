"""Which simulator the data reject."""

from sinkstudy.findings import verdicts as rules
from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import evidence, figure, percent, source, table


def section(t: Tables) -> str:
    errors = t.heldout_errors[t.heldout_errors["threshold"] == t.threshold]
    rows, lines = [], []
    for _, row in errors.iterrows():
        verdict = rules.rejected(row)
        where = evidence(
            f"heldout_errors/{row['model']}.csv", f"simulator={row['simulator']}, threshold={t.threshold:g}"
        )
        rows.append(
            {
                "model": row["model"],
                "simulator": row["simulator"],
                "error per layer": percent(row["layer_error"]),
                "of all heads": percent(row["sink_fraction_error"]),
                "of the correlation": percent(row["correlation_error"]),
                "per layer by chance": percent(row["chance_error"]),
                "p": f"{row['p_value']:.3g}",
                "evidence": where,
            }
        )
        start = "rejects" if verdict.holds else "does not reject"
        lines.append(f"- **{row['model']}** {start} the {row['simulator']} simulator: {verdict.reason}{where}")
    return "\n\n".join(
        [
            "## Which simulator the data reject",
            "Prompts are split in two by turns. The calibrated simulator is fitted to one half and predicts the other, "
            "both ways round; the formula of the original study, which has nothing to fit, predicts the same halves. "
            "Mean absolute errors of the sink fraction and of the correlation, in percentage points."
            if rows
            else "The prompts are too few or too short to predict one half of them from the other.",
            *([table(rows), "\n".join(lines)] if rows else []),
            *(
                figure(
                    f"heldout_{model}",
                    f"{model}: measured sink fraction per layer with its interval, beside what the SIMULATED formula "
                    "and the SIMULATED calibrated model foretold.",
                )
                for model in errors["model"].unique()
            ),
            source(*(f"heldout_errors/{model}.csv" for model in t.models)),
        ]
    )
