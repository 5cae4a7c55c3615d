"""What the study cost, stage by stage."""

import pandas as pd

from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import evidence, source, table


def section(t: Tables) -> str:
    rows = [
        {
            "stage": row["stage"],
            "jobs": int(row["jobs"]),
            "time": f"{row['total_s']:.1f} s",
            "longest job": f"{row['longest_s']:.1f} s ({row['longest']})",
            "CPU time": _sampled(row["cpu_s"], f"{row['cpu_s']:.1f} s"),
            "peak memory": _sampled(row["peak_rss_mib"], f"{row['peak_rss_mib']:.0f} MiB ({row['peak']})"),
            "evidence": evidence("costs.csv", f"stage={row['stage']}"),
        }
        for _, row in t.costs.iterrows()
    ]
    return "\n\n".join(
        [
            "## What it cost",
            f"All jobs before this page: {t.costs['total_s'].sum():.0f} s in "
            f"{int(t.costs['jobs'].sum())} jobs, the largest {t.costs['peak_rss_mib'].max():.0f} MiB. Times are wall "
            "time added up over jobs, which may have run side by side, each with the start of Python in it; memory is "
            "the largest resident set of a job, sampled.",
            table(rows),
            source("costs.csv"),
        ]
    )


def _sampled(value: float, text: str) -> str:
    return "too short to sample" if pd.isna(value) else text
