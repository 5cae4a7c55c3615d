"""How well sinks of one model can be told on prompts not seen before, and how many prompts that takes."""

from sinkstudy.stats.predictors import predictor_tables
from sinkstudy.stats.reduced import Reduced
from sinkstudy.stats.resampling import Resampling
from sinkstudy.store.tables import write_table
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    params = snakemake.params
    tables = predictor_tables(
        Reduced(snakemake.input),
        snakemake.wildcards.model,
        params.lengths,
        params.hold_out,
        Resampling(**params.resampling),
    )
    for name, table in tables.items():
        write_table(table, snakemake.output[name])
