"""Timing of one model."""

from sinkstudy.figures.style import save
from sinkstudy.figures.timing import timing_figure
from sinkstudy.joblog import job_log
from sinkstudy.tables import read_tables

with job_log(snakemake.log[0]):
    save(timing_figure(read_tables(snakemake.input)), *snakemake.output)
