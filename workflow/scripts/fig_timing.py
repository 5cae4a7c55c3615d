"""Timing of one model, and what its speedups cost."""

from sinkstudy.figures.style import save
from sinkstudy.figures.timing import timing_figure, tradeoff_figure
from sinkstudy.store.tables import read_tables
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    benchmark, (timing_png, timing_svg, tradeoff_png, tradeoff_svg) = read_tables(snakemake.input), snakemake.output
    save(timing_figure(benchmark), timing_png, timing_svg)
    save(tradeoff_figure(benchmark), tradeoff_png, tradeoff_svg)
