"""Measured models against uniform attention and against the same architecture with random weights."""

from sinkstudy.findings import verdicts as rules
from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import evidence, number, percent, source, span, table


def section(t: Tables) -> str:
    control = t.control[t.control["threshold"] == t.threshold]
    rows = [
        {
            "tokens": int(row["n_tokens"]),
            "model": row["model"],
            "control": row["control"],
            "prompts": int(row["prompts"]),
            "sink % (control)": f"{percent(row['sink_fraction'])} ({percent(row['control_sink_fraction'])})",
            "difference": f"{percent(row['difference'])} ({span(row, 'ci', percent)})",
            "mean excess (control)": f"{number(row['mean_excess'])} ({number(row['control_mean_excess'])})",
            "difference of excess": f"{number(row['excess_difference'])} ({span(row, 'excess', number)})",
            "evidence": evidence(
                "control.csv",
                f"model={row['model']}, control={row['control']}, threshold={t.threshold:g}, "
                f"n_tokens={int(row['n_tokens'])}",
            ),
        }
        for _, row in control.iterrows()
    ]
    beyond = [
        f"- **{model}** against {name}: {rules.exceeds_control(part).reason}"
        + evidence("control.csv", f"model={model}, control={name}, threshold={t.threshold:g}, every n_tokens")
        for (model, name), part in control.groupby(["model", "control"], sort=False)
    ]
    return "\n\n".join(
        [
            "## Against uniform attention and the untrained control",
            "\n".join(_against_null(t, model) for model in t.models),
            "A control is the same architecture with random weights; differences are taken prompt by prompt, with "
            "their 95% intervals."
            if rows
            else "The study has no control: no model with random weights beside a trained one of the same source.",
            *([table(rows), "\n".join(beyond)] if rows else []),
            source(*(f"curves/{model}.csv" for model in t.models), "control.csv"),
        ]
    )


def _against_null(t: Tables, model: str) -> str:
    """Whether the model has sinks, and whether its raw score is that of uniform attention."""
    curve = t.curve(model)
    verdict = rules.follows_null(curve)
    start = {
        True: "its raw score falls with length as the null does",
        False: "its raw score is not that of uniform attention",
        None: "its score cannot be compared with the null",
    }[verdict.holds]
    informative = curve[curve["null_score"] < t.threshold]
    most = "" if informative.empty else _most_sinks(informative)
    return f"- **{model}**: {most}{start}: {verdict.reason}" + evidence(
        f"curves/{model}.csv", f"set=all, threshold={t.threshold:g}, every n_tokens"
    )


def _most_sinks(curve) -> str:
    highest = curve.loc[curve["sink_fraction"].idxmax()]
    if highest["sink_fraction"] == 0:
        return "no head is a sink at any length at which uniform attention is none; "
    return f"at most {percent(highest['sink_fraction'])} of heads are sinks (at {int(highest['n_tokens'])} tokens); "
