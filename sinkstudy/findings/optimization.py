"""What replacing sink heads saves and costs."""

import pandas as pd

from sinkstudy.findings import verdicts as rules
from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import count, evidence, figure, percent, source, table

_TABLES = ("benchmark", "quality", "answers")


def section(t: Tables) -> str:
    device = ", ".join(t.benchmark["device"].unique())
    return "\n\n".join(
        [
            "## Optimization potential, as measured",
            f"The whole model on {device}, all variants in turn in one process; ± half the interquartile range. "
            "The ceiling is the speedup if every saved operation (decoding: every saved byte) were saved perfectly. "
            "Quality is measured against the unmodified model on held-out text. Shown are the baselines and what no "
            "other row of its cell beats in both speed and KL; all rows are in the table named below.",
            table(_speed(t)),
            "\n".join(line for model in t.models for line in _verdicts(t, model)),
            *(figure(f"timing_{model}", f"{model}: speedup over SDPA.") for model in t.models),
            *(figure(f"tradeoff_{model}", f"{model}: speed against quality.") for model in t.models),
            "### What it costs, by kind of text",
            "Texts whole, policy `consistent`. Heads are chosen over all prompts together: a set that wakes them up "
            "pays for it.",
            table(_quality(t)),
            "### Whole answers",
            "Greedy answers of prompts within a plan's `max_tokens`, compared with the unmodified model's token by "
            "token. One different token sends the rest of an answer elsewhere.",
            table(_answers(t)),
            source(*(f"{name}/{model}.csv" for name in _TABLES for model in t.models)),
        ]
    )


def _speed(t: Tables) -> list[dict[str, object]]:
    shown = []
    for _, cell in t.benchmark.groupby(["model", "phase", "n_tokens", "batch"], sort=False):
        baselines = cell[cell["policy"] == "none"]
        front = rules.pareto_front(cell)
        shown += [baselines, front[front["heads_replaced"] > 0]]
    return [
        {
            "model": row["model"],
            "phase": row["phase"],
            "tokens": int(row["n_tokens"]),
            "batch": int(row["batch"]),
            "strategy": row["strategy"],
            "policy": row["policy"],
            "heads replaced": f"{int(row['heads_replaced'])} ({percent(row['head_fraction'])})",
            "median ms": f"{1e3 * row['median_s']:.2f} ± {1e3 * row['iqr_s'] / 2:.2f}",
            "vs SDPA": "not run" if pd.isna(row["speedup_vs_sdpa"]) else f"{row['speedup_vs_sdpa']:.2f}",
            "vs eager": f"{row['speedup_vs_eager']:.2f}",
            "ceiling": f"{row['ceiling']:.2f}",
            "KL": f"{row['kl']:.1e}",
            "top-1": percent(row["top1_agreement"]),
            "perplexity": f"× {row['perplexity_ratio']:.3f}",
            "evidence": evidence(
                f"benchmark/{row['model']}.csv",
                f"phase={row['phase']}, n_tokens={row['n_tokens']}, batch={row['batch']}, "
                f"strategy={row['strategy']}, policy={row['policy']}",
            ),
        }
        for _, row in pd.concat(shown).iterrows()
    ]


def _verdicts(t: Tables, model: str) -> list[str]:
    benchmark, path = t.of("benchmark", model), f"benchmark/{model}.csv"
    every = evidence(path, "every row with heads_replaced>0")
    lines = [f"- **{model}**: {rules.worth_optimizing(benchmark).reason}{every}"]
    lines += [f"  - {verdict.reason}{every}" for verdict in rules.worth_having(benchmark)]
    reuse = evidence(path, "rows with strategy=reuse, heads_replaced>0")
    lines.append(f"  - {rules.original_proposal(benchmark).reason}{reuse}")
    share = evidence(path, "attention_share of rows with strategy=sdpa, phase=prefill")
    return [*lines, f"  - {rules.attention_share(benchmark).reason}{share}"]


def _quality(t: Tables) -> list[dict[str, object]]:
    rows = t.quality[t.quality["n_tokens"].isna() & (t.quality["policy"] == "consistent")]
    return [
        {
            "model": row["model"],
            "set": row["set"],
            "texts": int(row["texts"]),
            "strategy": row["strategy"],
            "heads replaced": count(round(row["heads_replaced"], 1)),
            "KL": f"{row['kl']:.1e}",
            "top-1": percent(row["top1_agreement"]),
            "top-5": percent(row["top5_agreement"]),
            "perplexity": f"× {row['perplexity_ratio']:.3f}",
            "evidence": evidence(
                f"quality/{row['model']}.csv",
                f"set={row['set']}, n_tokens empty, strategy={row['strategy']}, policy=consistent",
            ),
        }
        for _, row in rows[rows["heads_replaced"] > 0].iterrows()
    ]


def _answers(t: Tables) -> list[dict[str, object]]:
    rows = []
    for (model, strategy, policy), part in t.answers.groupby(["model", "strategy", "policy"], sort=False):
        departures = part["departs_at"].dropna()
        rows.append(
            {
                "model": model,
                "strategy": strategy,
                "policy": policy,
                "prompts": len(part),
                "tokens": int(part["answer_tokens"].iloc[0]),
                "identical": percent(part["identical"].mean()),
                "first departure (median token)": "none" if departures.empty else count(departures.median()),
                "evidence": evidence(f"answers/{model}.csv", f"strategy={strategy}, policy={policy}, over prompts"),
            }
        )
    return rows
