"""Correlate first-layer sinks with later layers for one model."""

from pathlib import Path

from sinkstudy.joblog import job_log
from sinkstudy.resampling import Resampling
from sinkstudy.stats import correlation_table
from sinkstudy.store import read_captures
from sinkstudy.tables import write_table

with job_log(snakemake.log[0]):
    params = snakemake.params
    table = correlation_table(
        read_captures([Path(p) for p in snakemake.input]),
        snakemake.wildcards.model,
        params.thresholds,
        params.lengths,
        Resampling(**params.resampling),
    )
    write_table(table, snakemake.output[0])
