"""What replacing sink heads saves and costs."""

import pandas as pd

from sinkstudy import conclusions as rules
from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import evidence, figure, percent, source, table


def section(t: Tables) -> str:
    rows = [
        {
            "model": row["model"],
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
                f"n_tokens={row['n_tokens']}, batch={row['batch']}, strategy={row['strategy']}, policy={row['policy']}",
            ),
        }
        for _, row in t.benchmark.iterrows()
    ]
    lines = [
        f"- **{model}**: {rules.worth_optimizing(t.of('benchmark', model)).reason}"
        + evidence(f"benchmark/{model}.csv", "every row with heads_replaced>0")
        for model in t.models
    ]
    device = ", ".join(t.benchmark["device"].unique())
    return "\n\n".join(
        [
            "## Optimization potential, as measured",
            f"Whole-model prefill on {device}, all variants in turn in one process; ± half the interquartile range. "
            "The ceiling is the speedup if every saved operation were saved perfectly. Quality is measured against "
            "the unmodified model on held-out text.",
            table(rows),
            "\n".join(lines),
            *(figure(f"timing_{model}", f"{model}: time per pass, and speedup over SDPA.") for model in t.models),
            source(*(f"benchmark/{model}.csv" for model in t.models)),
        ]
    )
