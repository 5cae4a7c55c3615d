"""Score every head of one model on every prompt."""

from pathlib import Path

from sinkstudy.stats.scores import score_tables
from sinkstudy.store import read_captures
from sinkstudy.store.tables import write_table
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    captures = read_captures([Path(path) for path in snakemake.input], parts=["key_mass", "output_norm"])
    write_table(score_tables(captures, snakemake.wildcards.model, snakemake.params.threshold), snakemake.output[0])
