"""Gather what every job took into one table."""

from sinkstudy.costs import cost_table
from sinkstudy.joblog import job_log
from sinkstudy.tables import write_table

with job_log(snakemake.log[0]):
    write_table(cost_table(dict(snakemake.input.items()), "results/costs"), snakemake.output[0])
