"""What each stage of the study cost: Snakemake's benchmark files, gathered into one table."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

SAMPLED_FROM_S = 1.0  # before that Snakemake has seen little more than the shell that starts Python
COLUMNS = ["stage", "jobs", "total_s", "longest_s", "longest", "cpu_s", "peak_rss_mib", "peak"]


def cost_table(files: Mapping[str, Sequence[Path | str]], root: Path | str) -> pd.DataFrame:
    """One row per stage with jobs, in the order of `files`: the benchmark files of its jobs, below `root`/stage, or
    the one file `root`/stage.tsv.

    `total_s`: wall time of all jobs added up, seconds. `longest_s`, `longest`: that of the slowest job, and which it
    was. `cpu_s`: CPU time of all jobs. `peak_rss_mib`, `peak`: the largest resident memory of a job and its
    children, MiB, and which job. Memory and CPU time are sampled every half second, so they are undefined (NaN) for
    jobs of less than a second.
    """
    rows = []
    for stage, paths in files.items():
        if not paths:  # a study may have no simulation, for one
            continue
        jobs = pd.concat([_job(Path(path), Path(root), stage) for path in paths], ignore_index=True)
        slowest = jobs.loc[jobs["s"].idxmax()]
        known = jobs.dropna(subset=["max_rss"])
        biggest = known.loc[known["max_rss"].idxmax()] if len(known) else {"max_rss": float("nan"), "job": None}
        rows.append(
            {
                "stage": stage,
                "jobs": len(jobs),
                "total_s": jobs["s"].sum(),
                "longest_s": slowest["s"],
                "longest": slowest["job"],
                "cpu_s": jobs["cpu_time"].sum(min_count=1),
                "peak_rss_mib": biggest["max_rss"],
                "peak": biggest["job"],
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def _job(path: Path, root: Path, stage: str) -> pd.DataFrame:
    """The one row of a benchmark file, with the job's name: where the file lies below its stage's folder."""
    row = pd.read_csv(path, sep="\t", na_values=["NA", "-"]).head(1)
    numbers = row[["s", "max_rss", "cpu_time"]].astype(float)
    numbers.loc[numbers["s"] < SAMPLED_FROM_S, ["max_rss", "cpu_time"]] = float("nan")
    name = path.relative_to(root).with_suffix("").as_posix()
    return numbers.assign(job=name.removeprefix(f"{stage}/"))
