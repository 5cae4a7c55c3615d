"""Average every head of one model over the prompts of each set, and over all."""

from sinkstudy.joblog import job_log
from sinkstudy.scores import head_table
from sinkstudy.tables import read_tables, write_table

with job_log(snakemake.log[0]):
    write_table(head_table(read_tables(snakemake.input)), snakemake.output[0])
