"""Gather what every job took into one table."""

from sinkstudy.store.tables import write_table
from sinkstudy.workflow.costs import cost_table
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    write_table(cost_table(dict(snakemake.input.items()), "results/costs"), snakemake.output[0])
