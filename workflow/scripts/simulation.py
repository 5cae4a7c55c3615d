"""Simulate the sink matrices of one preset at every prompt length."""

from pathlib import Path

from sinkstudy.joblog import job_log
from sinkstudy.resampling import Resampling
from sinkstudy.simulation import simulate, summary_table, write_simulation
from sinkstudy.tables import write_table

with job_log(snakemake.log[0]):
    params, preset = snakemake.params, snakemake.wildcards.preset
    simulated = simulate(**params.preset, threshold=params.threshold)
    summary = summary_table(preset, simulated, params.threshold, Resampling(**params.resampling))
    write_simulation(Path(snakemake.output.h5), preset, simulated, params.threshold)
    write_table(summary, snakemake.output.csv)
