"""Scores of one model against prompt length."""

from sinkstudy.figures.lengths import length_figure
from sinkstudy.figures.style import save
from sinkstudy.joblog import job_log
from sinkstudy.tables import read_tables

with job_log(snakemake.log[0]):
    save(length_figure(read_tables(snakemake.input)), *snakemake.output)
