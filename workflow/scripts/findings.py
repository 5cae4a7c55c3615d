"""Write the findings report from the result tables."""

from pathlib import Path

from sinkstudy.findings import Tables, markdown
from sinkstudy.joblog import job_log
from sinkstudy.store import read_provenance
from sinkstudy.tables import read_tables

with job_log(snakemake.log[0]):
    names = ("scores", "heads", "lengths", "correlation", "simulation", "benchmark", "verification")
    tables = Tables(
        **{name: read_tables(getattr(snakemake.input, name)) for name in names},
        comparison=read_tables([snakemake.input.comparison]),
        provenance={one["model"]: one for one in map(read_provenance, snakemake.input.captures)},
        threshold=snakemake.params.threshold,
    )
    Path(snakemake.output[0]).write_text(markdown(tables), encoding="utf-8")
