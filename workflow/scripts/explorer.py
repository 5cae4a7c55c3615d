"""Write the explorer, one page on all captures."""

from itertools import groupby
from pathlib import Path

from sinkstudy.explorer import write_page
from sinkstudy.workflow.expected import Expected
from sinkstudy.workflow.joblog import job_log


def by_folder(paths):
    return {name: list(of) for name, of in groupby(map(Path, paths), key=lambda path: path.parent.name)}


with job_log(snakemake.log[0]):
    params, files = snakemake.params, snakemake.input
    captures, plans = (by_folder(paths) for paths in (files.captures, files.plans))
    arms = [path for folder in files.bos_arms for path in sorted(Path(folder).glob("*.h5"))]
    captures = {model: Expected(**params.expected[model]).checked(paths) for model, paths in captures.items()}
    captures |= {f"{path.parent.name}, bos {path.stem}": [path] for path in arms}
    costs = {Path(path).stem: Path(path) for path in files.costs}
    write_page(captures, params.thresholds, params.threshold, Path(snakemake.output[0]), costs, plans)
