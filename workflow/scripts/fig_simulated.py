"""Simulated matrices of one preset."""

from pathlib import Path

from sinkstudy.figures.simulated import simulated_figure
from sinkstudy.figures.style import save
from sinkstudy.simulation.formula import read_simulation
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    lengths, scores, is_sink = read_simulation(Path(snakemake.input[0]))
    save(simulated_figure(snakemake.wildcards.preset, lengths, scores, is_sink), snakemake.output[0])
