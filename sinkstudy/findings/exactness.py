"""How far the captures are from eager attention."""

from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import evidence, source


def section(t: Tables) -> str:
    lines = []
    for model in t.models:
        part = t.of("verification", model)
        worst = part.loc[part["max_mass_difference"].idxmax()]
        lines.append(
            f"- **{model}**: largest difference from eager attention {worst['max_mass_difference']:.1e} (prompt "
            f"`{worst['prompt']}`, {int(worst['n_tokens'])} tokens), over {len(part)} recomputed prompts."
            + evidence(f"verification/{model}.csv", f"prompt={worst['prompt']}, max_mass_difference")
        )
    sources = source(*(f"verification/{model}.csv" for model in t.models))
    return "\n\n".join(["## Exactness of the captures", "\n".join(lines), sources])
