"""Capture one shard of prompts with one model."""

from pathlib import Path

import torch

from sinkstudy.capture.recording import record
from sinkstudy.measures.captured import Keep
from sinkstudy.models.loading import load_model
from sinkstudy.models.spec import pinned
from sinkstudy.prompts import read_prompts, shards
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    torch.set_num_threads(min(snakemake.threads, torch.get_num_threads()))
    params = snakemake.params
    prompts = shards(read_prompts(Path(snakemake.input.prompts)), params.tokens_per_job)[snakemake.wildcards.shard]
    spec = pinned(params.model, snakemake.input.model, Path.cwd())
    record(
        path=Path(snakemake.output[0]),
        name=snakemake.wildcards.model,
        loaded=load_model(spec, params.offload, snakemake.resources.mem_mb * 10**6),
        prompts=prompts,
        maps_max_tokens=params.maps_max_tokens,
        positions_max_tokens=params.positions_max_tokens,
        too_long=params.too_long,
        keep=Keep(**params.keep) if params.keep else None,
    )
