"""Which of the first positions is the sink."""

from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import evidence, percent, source


def section(t: Tables) -> str:
    """Which of the first positions is the sink, where one is: the first token in most models, not in all."""
    lines = []
    for model in t.models:
        scores = t.of("scores", model)
        strong = scores[scores["position_score"] >= t.threshold]
        if strong.empty:
            lines.append(
                f"- **{model}**: no head puts {t.threshold:g} of its attention on one of the first four tokens."
                + evidence(f"scores/{model}.csv", "largest position_score")
            )
            continue
        shares = strong["strongest_position"].astype(int).value_counts(normalize=True).sort_index()
        text = ", ".join(f"{percent(share)} on position {position}" for position, share in shares.items())
        rows = evidence(f"scores/{model}.csv", f"position_score>={t.threshold:g}, counts of strongest_position")
        lines.append(
            f"- **{model}**: of {len(strong)} cases (head and prompt) of {t.threshold:g} or more, {text}.{rows}"
        )
    note = "Attention of the queries after the fourth token on each of the first four positions."
    sources = source(*(f"scores/{model}.csv" for model in t.models))
    return "\n\n".join(["## Where the sink is", note, "\n".join(lines), sources])
