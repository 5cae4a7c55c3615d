"""Convert the GGUF file of one model, and write down what it holds."""

import json
from pathlib import Path

from sinkstudy.models.conversion import convert_once, located
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    settings = dict(snakemake.params.model)
    gguf = located(settings, list(snakemake.input), Path.cwd())
    record = convert_once(gguf, settings["sha256"])
    Path(snakemake.output[0]).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
