"""Write the findings report from the result tables: as Markdown, and as one HTML page with its figures inside."""

from pathlib import Path

from sinkstudy.findings import Tables, markdown
from sinkstudy.findings.html import html
from sinkstudy.joblog import job_log
from sinkstudy.store import read_provenance
from sinkstudy.tables import read_tables

with job_log(snakemake.log[0]):
    names = ("scores", "heads", "lengths", "correlation", "simulation", "benchmark", "verification")
    tables = Tables(
        **{name: read_tables(getattr(snakemake.input, name)) for name in names},
        comparison=read_tables([snakemake.input.comparison]),
        costs=read_tables([snakemake.input.costs]),
        provenance={one["model"]: one for one in map(read_provenance, snakemake.input.captures)},
        threshold=snakemake.params.threshold,
    )
    text = markdown(tables)
    Path(snakemake.output.md).write_text(text, encoding="utf-8")
    page = Path(snakemake.output.html)
    page.write_text(html(text, page.parent), encoding="utf-8")
