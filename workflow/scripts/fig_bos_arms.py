"""Sinks of one model under each setting of bos."""

from sinkstudy.figures.bos_arms import bos_figure
from sinkstudy.figures.style import save
from sinkstudy.store.tables import read_tables
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    save(bos_figure(read_tables(snakemake.input)), snakemake.output[0])
