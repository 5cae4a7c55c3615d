"""Write the findings report from the result tables: as Markdown, and as one HTML page with its figures inside."""

from pathlib import Path

from sinkstudy.findings import Tables, markdown
from sinkstudy.findings.html import html
from sinkstudy.store import Expected, read_provenance, write_file
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    files = {name: [paths] if isinstance(paths, str) else paths for name, paths in snakemake.input.items()}
    del files["figures"]
    expected = [Expected(**one) for one in snakemake.params.expected]
    provenance = {one["model"]: one for one in map(read_provenance, files.pop("captures"), expected)}
    text = markdown(Tables.read(files, provenance, snakemake.params.threshold))
    write_file(snakemake.output.md, text)
    write_file(snakemake.output.html, html(text, Path(snakemake.output.html).parent))
