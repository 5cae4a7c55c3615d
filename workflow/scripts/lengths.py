"""Score one model at every prefix length of every prompt."""

from pathlib import Path

from sinkstudy.joblog import job_log
from sinkstudy.scores import length_tables
from sinkstudy.store import read_captures
from sinkstudy.tables import write_table

with job_log(snakemake.log[0]):
    captures = read_captures([Path(path) for path in snakemake.input], parts=["sink_mass"])
    write_table(length_tables(captures, snakemake.wildcards.model, snakemake.params.thresholds), snakemake.output[0])
