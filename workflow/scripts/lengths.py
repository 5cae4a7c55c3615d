"""Score one model at every prefix length of every prompt."""

from pathlib import Path

import pandas as pd

from sinkstudy.joblog import job_log
from sinkstudy.scores import length_table
from sinkstudy.store import read_captures
from sinkstudy.tables import write_table

with job_log(snakemake.log[0]):
    model, thresholds = snakemake.wildcards.model, snakemake.params.thresholds
    # A shard at a time, so that memory does not grow with the number of prompts.
    shards = (read_captures([Path(path)]) for path in snakemake.input)
    write_table(
        (pd.concat([length_table(capture, model, thresholds) for capture in shard]) for shard in shards),
        snakemake.output[0],
    )
