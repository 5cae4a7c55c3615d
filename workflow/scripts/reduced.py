"""Reduce the captures of some shards of one model to what statistics need of them."""

from pathlib import Path

from sinkstudy.stats.reduction import Needs, reduce
from sinkstudy.store import open_capture, read_captures
from sinkstudy.workflow.expected import Expected
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    paths = Expected(**snakemake.params.expected).checked(snakemake.input)
    with open_capture(paths[0]) as first:
        identity = first.identity
    reduce(Path(snakemake.output[0]), read_captures(paths), Needs(**snakemake.params.needs), identity)
