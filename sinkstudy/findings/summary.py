"""The question and the answer in a few lines."""

from sinkstudy import conclusions as rules
from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import has, holds, pays


def section(t: Tables) -> str:
    lines = [
        "# Attention sinks: findings",
        "Is a head that is a sink in the first layer a sink at the same index in later layers, and can inference use "
        "sinks to run faster without changing what the model says? "
        f"Here a head counts as a sink at a sink score of {t.threshold:g} or more. Uniform causal attention reaches a "
        "score of its own (the null), high for short prompts; the excess score leaves it out.",
    ]
    for model in t.models:
        sinks = rules.has_sinks(t.of("scores", model), t.threshold)
        hypothesis = rules.first_layer_hypothesis(t.overall(model))
        speed = rules.worth_optimizing(t.of("benchmark", model))
        lines.append(
            f"- **{model}**: {has(sinks)} The first-layer hypothesis {holds(hypothesis)}; "
            f"replacing sink heads {pays(speed)}."
        )
    return "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:])
