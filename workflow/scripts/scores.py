"""Score every head of one model on every prompt."""

from sinkstudy.stats.reduced import Reduced
from sinkstudy.stats.scores import score_tables
from sinkstudy.store.tables import write_long_table
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    tables = score_tables(Reduced(snakemake.input), snakemake.wildcards.model, snakemake.params.threshold)
    write_long_table(tables, snakemake.output.scores_parquet, snakemake.output.get("scores"))
