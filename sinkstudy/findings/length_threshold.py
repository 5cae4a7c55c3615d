"""Up to which length the correlation holds."""

from sinkstudy import conclusions as rules
from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import source


def section(t: Tables) -> str:
    lines = []
    for model in t.models:
        part = t.of("correlation", model)
        part = part[(part["threshold"] == t.threshold) & (part["set"] == "all")]
        lines.append(f"- **{model}**: {rules.length_threshold(part).reason}")
    return "\n\n".join(["## Length threshold", "\n".join(lines), source(*(f"correlation/{m}.csv" for m in t.models))])
