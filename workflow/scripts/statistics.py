"""Correlation, curves over length, layer pairs and persistence of the heads of one model."""

from sinkstudy.stats.analysis import analyse
from sinkstudy.stats.resampling import Resampling
from sinkstudy.store.reduced import Reduced
from sinkstudy.store.tables import write_long_table, write_table
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    params = snakemake.params
    tables = analyse(
        Reduced(snakemake.input),
        snakemake.wildcards.model,
        params.lengths,
        params.reported,
        Resampling(**params.resampling),
    )
    write_long_table(tables.pop("lengths"), snakemake.output.lengths_parquet, snakemake.output.get("lengths"))
    for name, table in tables.items():
        write_table(table, snakemake.output[name])
