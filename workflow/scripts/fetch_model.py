"""Bring one Hub model into the cache, and write down at which commit."""

import json
from pathlib import Path

from sinkstudy.models.sources import fetch
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    record = fetch(**snakemake.params.model)
    Path(snakemake.output[0]).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
