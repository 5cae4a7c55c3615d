"""Which of the first positions is the sink."""

from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import evidence, percent, source


def section(t: Tables) -> str:
    """Which of the first positions is the sink, where one is: the first token in most models, not in all."""
    lines = []
    for model in t.models:
        cases = t.of("positions", model).set_index("strongest_position")["cases"]
        if cases.empty:
            lines.append(
                f"- **{model}**: no head puts {t.threshold:g} of its attention on one of the first four tokens."
                + evidence(f"scores/{model}.csv", "largest position_score")
            )
            continue
        text = ", ".join(f"{percent(n / cases.sum())} on position {int(position)}" for position, n in cases.items())
        rows = evidence(f"scores/{model}.csv", f"position_score>={t.threshold:g}, counts of strongest_position")
        lines.append(
            f"- **{model}**: of {cases.sum()} cases (head and prompt) of {t.threshold:g} or more, {text}.{rows}"
        )
    note = "Attention of the queries after the fourth token on each of the first four positions."
    sources = source(*(f"scores/{model}.csv" for model in t.models))
    return "\n\n".join(["## Where the sink is", note, "\n".join(lines), sources])
