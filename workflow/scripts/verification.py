"""Recompute a sample of one model's captures by eager attention."""

from pathlib import Path

import torch

from sinkstudy.capture.verification import verify
from sinkstudy.models.loading import load_model
from sinkstudy.models.spec import pinned
from sinkstudy.store.tables import write_table
from sinkstudy.workflow.expected import Expected
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    torch.set_num_threads(min(snakemake.threads, torch.get_num_threads()))
    params, captures = snakemake.params, snakemake.input.captures
    spec = pinned(params.model, snakemake.input.model, Path.cwd())
    loaded = load_model(spec, params.offload, snakemake.resources.mem_mb * 10**6)
    captures = Expected(**params.expected).checked(captures)
    table = verify(snakemake.wildcards.model, loaded, captures, params.sample)
    write_table(table, snakemake.output[0])
