"""What the findings conclude of every model, and `verdicts.json`, the same for programs."""

import json
import math
from dataclasses import replace
from urllib.parse import urlencode

from sinkstudy.findings import predictor_rules, replacing, rules
from sinkstudy.findings.inputs import MIN_TOKENS, Tables
from sinkstudy.findings.mechanism import mechanism
from sinkstudy.findings.text import Markdown
from sinkstudy.stats.scores import null_score

# The explorer colours the heads that a verdict is about by these; a verdict on plans shows the plan that was judged.
_COLOURS = {
    "has_sinks": "excess",
    "first_layer": "score",
    "length": "score",
    "predictor": "score",
    "mechanism": "drain",
}


def judge(t: Tables, model: str) -> dict[str, rules.Verdict]:
    """The verdict on every question about one model."""
    here = {"model": model, "threshold": t.threshold}
    pooled = t.of("correlation", **here, set="all", prompt="all").dropna(subset="n_tokens")
    # Elsewhere uniform attention is itself a sink.
    pooled = pooled[null_score(pooled["n_tokens"].astype(int)) < t.threshold]
    predicted = {name: t.of(name, **here, measure="score") for name in ("predictors", "learning")}
    benchmark, at, replaced = t.of("benchmark", model=model), f"threshold={t.threshold:g}", "rows with heads_replaced>0"
    control = rules.Verdict(None, "a control is not timed: its weights are random.") if model in t.controls else None
    skipping, timed = t.of("skipping", model=model), "" if control or benchmark.empty else "benchmark"
    tried = "" if control or skipping.empty else "skipping"
    long, prompts = t.of("long_prompts", model=model), f"n_tokens>={MIN_TOKENS}, over prompts per head"
    found = {
        "has_sinks": (rules.has_sinks(long, t.threshold), "scores", prompts),
        "first_layer": (
            predictor_rules.first_layer(pooled),
            "correlation",
            f"set=all, prompt=all, n_tokens given, {at}",
        ),
        "length": (predictor_rules.length(t.of("weakening", **here).iloc[0]), "weakening", at),
        "predictor": (predictor_rules.predictor(**predicted), "predictors", f"measure=score, n_tokens empty, {at}"),
        "mechanism": (mechanism(t.of("mechanism", model=model)), "mechanism", "layer empty, and quantity=activation"),
        "skippable": (control or replacing.skippable(skipping), tried, "chosen_by=policy and its controls"),
        "worth_replacing": (control or replacing.worth_replacing(benchmark), timed, replaced),
        "simulator": (rules.simulator(t.of("heldout_errors", **here)), "heldout_errors", f"simulator=formula, {at}"),
    }
    return {
        question: replace(verdict, file=t.file_of(table, model) if table else "", rows=rows)
        for question, (verdict, table, rows) in found.items()
    }


def verdicts_json(t: Tables) -> str:
    """All verdicts, sorted by model and question. Evidence: by name, a number with the file and the rows it is from."""
    entries = [
        {
            "model": model,
            "question": question,
            "holds": verdict.holds,
            "reason": verdict.reason,
            "evidence": {
                name: {"value": None if math.isnan(value) else value, "table": verdict.file, "rows": verdict.rows}
                for name, value in sorted(verdict.numbers.items())
            },
        }
        for model in sorted(t.models)
        for question, verdict in sorted(judge(t, model).items())
    ]
    return json.dumps(entries, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def view(model: str, question: str, verdict: rules.Verdict) -> Markdown:
    """A link to the explorer that shows the heads as the verdict saw them; nothing where it shows nothing of that."""
    state = {"model": model, "prompt": "all"}
    if question in _COLOURS:
        state["colour"] = _COLOURS[question]
        length = verdict.numbers.get("n_tokens", verdict.numbers.get("length", math.nan))
        if not math.isnan(length):
            state["length"] = f"{length:.0f}"
    elif verdict.row is not None:
        state["colour"] = f"plan:{verdict.row['policy']}"
    else:
        return Markdown("")
    return Markdown(f" [See the heads](<explorer.html#{urlencode(state)}>)")
