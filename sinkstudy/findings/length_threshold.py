"""Up to which length the correlation holds."""

from sinkstudy import conclusions as rules
from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import evidence, source


def section(t: Tables) -> str:
    lines = []
    for model in t.models:
        part = t.of("correlation", model)
        part = part[(part["threshold"] == t.threshold) & (part["set"] == "all")]
        rows = evidence(f"correlation/{model}.csv", f"set=all, prompt=all, every n_tokens, threshold={t.threshold:g}")
        lines.append(f"- **{model}**: {rules.length_threshold(part).reason}{rows}")
    return "\n\n".join(["## Length threshold", "\n".join(lines), source(*(f"correlation/{m}.csv" for m in t.models))])
