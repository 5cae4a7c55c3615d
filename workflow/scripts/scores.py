"""Score every head of one model on every prompt."""

from sinkstudy.stats.scores import score_tables
from sinkstudy.store import Expected, read_captures
from sinkstudy.store.tables import write_table
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    params = snakemake.params
    captures = read_captures(snakemake.input, Expected(**params.expected))
    write_table(score_tables(captures, snakemake.wildcards.model, params.threshold), snakemake.output[0])
