"""Simulated matrices of one preset."""

from pathlib import Path

import numpy as np

from sinkstudy.figures.simulated import simulated_figure
from sinkstudy.figures.style import save
from sinkstudy.simulation.formula import read_simulation
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    simulated = read_simulation(Path(snakemake.input[0]))
    lengths = [one.n_tokens for one in simulated]
    scores, is_sink = (np.stack([getattr(one, name) for one in simulated]) for name in ("score", "is_sink"))
    save(simulated_figure(snakemake.wildcards.preset, lengths, scores, is_sink), snakemake.output[0])
