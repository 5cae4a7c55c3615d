"""Convert the GGUF file of one model, and write down what it holds."""

import json
from pathlib import Path

from sinkstudy.models.conversion import convert_once, gguf_path
from sinkstudy.store import write_file
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    settings = dict(snakemake.params.model)
    gguf = gguf_path(settings, list(snakemake.input), Path.cwd())
    record = convert_once(gguf, settings["sha256"])
    write_file(snakemake.output[0], json.dumps(record, indent=1) + "\n")
