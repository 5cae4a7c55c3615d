"""Sinks of one model at every length, by layer pair, head, prompt set and definition."""

from sinkstudy.stats.analysis import head_statistics
from sinkstudy.stats.reduced import Reduced
from sinkstudy.stats.resampling import Resampling
from sinkstudy.store.tables import write_long_table, write_table
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    model, params, output = snakemake.wildcards.model, snakemake.params, snakemake.output
    reduced, resampling = Reduced(snakemake.input), Resampling(**params.resampling)
    tables = head_statistics(reduced, model, params.lengths, params.reported, resampling)
    write_long_table(tables.pop("lengths"), output.lengths_parquet, output.get("lengths"))
    for name, table in tables.items():
        write_table(table, output[name])
