"""Write the explorer, one page on all captures."""

from itertools import groupby
from pathlib import Path

from sinkstudy.explorer import write_page
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    paths = [Path(path) for path in snakemake.input]
    captures = {model: list(group) for model, group in groupby(paths, key=lambda path: path.parent.name)}
    write_page(captures, snakemake.params.thresholds, snakemake.params.threshold, Path(snakemake.output[0]))
