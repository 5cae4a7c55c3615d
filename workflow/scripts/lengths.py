"""Score one model at every prefix length of every prompt."""

from pathlib import Path

from sinkstudy.joblog import job_log
from sinkstudy.scores import length_table
from sinkstudy.store import read_captures
from sinkstudy.tables import write_table

with job_log(snakemake.log[0]):
    captures = read_captures([Path(p) for p in snakemake.input])
    model, thresholds = snakemake.wildcards.model, snakemake.params.thresholds
    write_table((length_table(capture, model, thresholds) for capture in captures), snakemake.output[0])
