"""Score every head of one model on every prompt."""

from pathlib import Path

import pandas as pd

from sinkstudy.joblog import job_log
from sinkstudy.scores import score_table
from sinkstudy.store import read_captures
from sinkstudy.tables import write_table

with job_log(snakemake.log[0]):
    model, threshold = snakemake.wildcards.model, snakemake.params.threshold
    # A shard at a time, so that memory does not grow with the number of prompts.
    shards = (read_captures([Path(path)]) for path in snakemake.input)
    write_table(
        (pd.concat([score_table(capture, model, threshold) for capture in shard]) for shard in shards),
        snakemake.output[0],
    )
