"""Write the findings from the result tables: Markdown, one HTML page with its figures inside, and the verdicts."""

from pathlib import Path

from sinkstudy.findings import Tables, markdown
from sinkstudy.findings.html import html
from sinkstudy.findings.inputs import PUBLISHED
from sinkstudy.findings.verdicts import verdicts_json
from sinkstudy.store import open_capture, write_file
from sinkstudy.workflow.expected import Expected
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    files = dict(snakemake.input.items()) | {"published": [PUBLISHED]}
    figures = frozenset(Path(path).stem for path in files.pop("figures"))
    provenance = {}
    for path, expected in zip(files.pop("captures"), snakemake.params.expected, strict=True):
        with open_capture(*Expected(**expected).checked([path])) as capture:
            first_token = capture.capture(next(iter(capture.prompts))).tokens[0]
            provenance[capture.attributes["model"]] = {**capture.attributes, "first_token": first_token}
    controls = frozenset(snakemake.params.controls)
    about = {"controls": controls, "figures": figures, "long_as_csv": snakemake.params.long_as_csv}
    tables = Tables.read(files, snakemake.params.threshold, provenance=provenance, **about)
    text = markdown(tables)
    write_file(snakemake.output.md, text)
    write_file(snakemake.output.html, html(text, Path(snakemake.output.html).parent))
    write_file(snakemake.output.verdicts, verdicts_json(tables))
