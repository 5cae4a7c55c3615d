"""Timing of one model, and what its speedups cost."""

from sinkstudy.figures.style import save
from sinkstudy.figures.timing import timing_figure, tradeoff_figure
from sinkstudy.store.tables import read_tables
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    benchmark, output = read_tables(snakemake.input), snakemake.output
    save(timing_figure(benchmark), output.timing[0])
    save(tradeoff_figure(benchmark), output.tradeoff[0])
