"""The question, the answer, three numbers and one figure: what fits on one screen."""

from sinkstudy.findings import verdicts as rules
from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import evidence, figure, holds, number, pays, percent, table


def section(t: Tables) -> str:
    return "\n\n".join(
        [
            "# Attention sinks: findings",
            "**Question.** Is a head that is a sink in the first layer a sink at the same index in later layers, and "
            "can inference use sinks to run faster without changing what the model says?",
            "\n".join(_answer(t, model) for model in t.models),
            table([_numbers(t, model) for model in t.models]),
            f"A head is a sink where its sink score, its mean attention on the first token, is {t.threshold:g} or "
            "more. Uniform causal attention has a score too (the null), high for short prompts; the excess score "
            "leaves it out: 0 is uniform attention, 1 a perfect sink.",
            figure(f"lengths_{_main_model(t)}", f"{_main_model(t)}: sinks and scores against prompt length."),
        ]
    )


def _answer(t: Tables, model: str) -> str:
    """One line of verdicts; their reasons stand in the conclusion."""
    sinks = rules.has_sinks(t.of("long_prompts", model), t.threshold)
    has = {True: "has sinks", False: "has no sinks", None: "is measured on prompts too short to judge"}[sinks.holds]
    line = f"- **{model}** {has}. The first-layer hypothesis {holds(rules.first_layer_hypothesis(t.overall(model)))}; "
    line += f"replacing sink heads {pays(rules.worth_optimizing(t.of('benchmark', model)))}."
    effect = rules.length_effect(t.of("lengths", model))
    if sinks.holds is False and effect.holds is False:
        line += " Its score falls with length only because uniform attention's does."
    return line


def _numbers(t: Tables, model: str) -> dict[str, str]:
    """Sinks, correlation and speed in a row."""
    heads = t.of("heads", model)
    every = heads[heads["set"] == "all"]
    row = t.overall(model)
    safe = rules.harmless(t.of("benchmark", model)).dropna(subset=["speedup_vs_sdpa"])
    excess = number(every["mean_excess_score"].mean())
    return {
        "model": model,
        "sink heads (mean excess)": f"{percent(every['sink_share'].mean())} ({excess})",
        "first-layer sinks followed (base rate)": f"{percent(row['p_later_given_first'])} ({percent(row['p_later'])})",
        "best harmless speedup over SDPA": f"{rules.fastest(safe)['speedup_vs_sdpa']:.2f} ×" if len(safe) else "none",
        "evidence": evidence(f"heads/{model}.csv", "set=all, means over heads of sink_share and mean_excess_score")
        + evidence(f"correlation/{model}.csv", f"set=all, prompt=all, n_tokens empty, threshold={t.threshold:g}")
        + evidence(
            f"benchmark/{model}.csv",
            "speedup_vs_sdpa where speedup_low is largest, of the rows with heads_replaced>0, "
            f"kl<={rules.HARMLESS_KL:g}, top1_agreement>={rules.HARMLESS_AGREEMENT:g}",
        ),
    }


def _main_model(t: Tables) -> str:
    """The first model with sinks, or else the first."""
    sinky = (m for m in t.models if rules.has_sinks(t.of("long_prompts", m), t.threshold).holds)
    return next(sinky, t.models[0])
