"""Which of the first positions is the sink."""

from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import percent, source


def section(t: Tables) -> str:
    """Which of the first positions is the sink, where one is: the first token in most models, not in all."""
    lines = []
    for model in t.models:
        scores = t.of("scores", model)
        strong = scores[scores["position_score"] >= t.threshold]
        if strong.empty:
            lines.append(
                f"- **{model}**: no head puts {t.threshold:g} of its attention on one of the first four tokens."
            )
            continue
        shares = strong["strongest_position"].astype(int).value_counts(normalize=True).sort_index()
        text = ", ".join(f"{percent(share)} on position {position}" for position, share in shares.items())
        lines.append(f"- **{model}**: of {len(strong)} cases (head and prompt) of {t.threshold:g} or more, {text}.")
    note = "Attention of the queries after the fourth token on each of the first four positions."
    sources = source(*(f"scores/{model}.csv" for model in t.models))
    return "\n\n".join(["## Where the sink is", note, "\n".join(lines), sources])
