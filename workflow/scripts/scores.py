"""Score every head of one model on every prompt."""

from pathlib import Path

from sinkstudy.joblog import job_log
from sinkstudy.scores import score_table
from sinkstudy.store import read_captures
from sinkstudy.tables import write_table

with job_log(snakemake.log[0]):
    captures = read_captures([Path(p) for p in snakemake.input])
    model, threshold = snakemake.wildcards.model, snakemake.params.threshold
    write_table((score_table(capture, model, threshold) for capture in captures), snakemake.output[0])
