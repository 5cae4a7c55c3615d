"""Set short beside long prompts, model beside model, and measured beside simulated."""

from sinkstudy.comparison import comparison_table
from sinkstudy.joblog import job_log
from sinkstudy.tables import read_tables, write_table

with job_log(snakemake.log[0]):
    files = snakemake.input
    parts = [read_tables(part) for part in (files.heads, files.lengths, files.correlation, files.simulation)]
    write_table(comparison_table(*parts, threshold=snakemake.params.threshold), snakemake.output[0])
