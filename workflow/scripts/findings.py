"""Write the findings report from the result tables: as Markdown, and as one HTML page with its figures inside."""

from pathlib import Path

from sinkstudy.findings import Tables, markdown
from sinkstudy.findings.html import html
from sinkstudy.store import read_provenance
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    files = {name: [paths] if isinstance(paths, str) else paths for name, paths in snakemake.input.items()}
    del files["figures"]
    provenance = {one["model"]: one for one in map(read_provenance, files.pop("captures"))}
    text = markdown(Tables.read(files, provenance, snakemake.params.threshold))
    Path(snakemake.output.md).write_text(text, encoding="utf-8")
    page = Path(snakemake.output.html)
    page.write_text(html(text, page.parent), encoding="utf-8")
