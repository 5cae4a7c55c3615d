"""Reduce the captures of some shards of one model to what statistics need of them."""

from pathlib import Path

from sinkstudy.stats.reduction import Needs, reduce
from sinkstudy.store import Expected, read_captures, read_provenance
from sinkstudy.store.reading import IDENTITY
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    expected, paths = Expected(**snakemake.params.expected), snakemake.input
    provenance = read_provenance(paths[0], expected)
    identity = {name: provenance[name] for name in IDENTITY if name in provenance}
    reduce(Path(snakemake.output[0]), read_captures(paths, expected), Needs(**snakemake.params.needs), identity)
