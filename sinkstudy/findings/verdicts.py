"""What the findings conclude of every model, and `verdicts.json`, the same for programs."""

import json
import math
from dataclasses import replace

import pandas as pd

from sinkstudy.findings import rules
from sinkstudy.findings.inputs import MIN_TOKENS, Tables, file_of
from sinkstudy.findings.mechanism import mechanism


def judge(t: Tables, model: str) -> dict[str, rules.Verdict]:
    """The verdict on every question about one model."""
    here = {"model": model, "threshold": t.threshold}
    row = rules.with_first_layer_sinks(t.of("correlation", **here, set="all", prompt="all"))
    where = "empty" if pd.isna(row["n_tokens"]) else f"={row['n_tokens']:.0f}"
    benchmark, at, replaced = t.of("benchmark", model=model), f"threshold={t.threshold:g}", "rows with heads_replaced>0"
    no_table = "not measured: the study has no table of it."
    control = rules.Verdict(None, "a control is not timed: its weights are random.") if model in t.controls else None
    timed = "" if control or benchmark.empty else "benchmark"
    long, prompts = t.of("long_prompts", model=model), f"n_tokens>={MIN_TOKENS}, over prompts per head"
    found = {
        "has_sinks": (rules.has_sinks(long, t.threshold), "scores", prompts),
        "first_layer": (rules.first_layer(row), "correlation", f"set=all, prompt=all, n_tokens {where}, {at}"),
        "length": (rules.length(t.of("weakening", **here).iloc[0]), "weakening", at),
        "predictor": (rules.Verdict(None, f"how well anything predicts later sinks is {no_table}"), "", ""),
        "mechanism": (mechanism(t.of("mechanism", model=model)), "mechanism", "layer empty, and quantity=activation"),
        "skippable": (control or rules.skippable(benchmark), timed, replaced),
        "worth_replacing": (control or rules.worth_replacing(benchmark), timed, replaced),
        "simulator": (rules.simulator(t.of("heldout_errors", **here)), "heldout_errors", f"simulator=formula, {at}"),
    }
    return {
        question: replace(verdict, file=file_of(table, model) if table else "", rows=rows)
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
