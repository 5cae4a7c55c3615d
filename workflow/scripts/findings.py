"""Write the findings report from the result tables: as Markdown, and as one HTML page with its figures inside."""

from pathlib import Path

from sinkstudy.findings import Tables, markdown
from sinkstudy.findings.html import html
from sinkstudy.joblog import job_log
from sinkstudy.store import read_provenance
from sinkstudy.tables import read_tables

with job_log(snakemake.log[0]):
    files = {name: [paths] if isinstance(paths, str) else paths for name, paths in snakemake.input.items()}
    tables = Tables(
        **{name: read_tables(paths) for name, paths in files.items() if name not in ("captures", "figures")},
        provenance={one["model"]: one for one in map(read_provenance, snakemake.input.captures)},
        threshold=snakemake.params.threshold,
    )
    text = markdown(tables)
    Path(snakemake.output.md).write_text(text, encoding="utf-8")
    page = Path(snakemake.output.html)
    page.write_text(html(text, page.parent), encoding="utf-8")
