"""Write the explorer, one page on all captures."""

from itertools import groupby
from pathlib import Path

from sinkstudy.explorer import write_page
from sinkstudy.store import Expected
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    paths = [Path(path) for path in snakemake.input]
    captures = {model: list(group) for model, group in groupby(paths, key=lambda path: path.parent.name)}
    params = snakemake.params
    expected = {model: Expected(**one) for model, one in params.expected.items()}
    write_page(captures, params.thresholds, params.threshold, Path(snakemake.output[0]), expected)
