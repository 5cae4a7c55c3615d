"""Write the plan of one model that keeps only layers whose heads are cheap to replace."""

from pathlib import Path

import torch

from sinkstudy.attention.plan import Plan
from sinkstudy.evaluation.policies import CALIBRATION_PROMPTS, CALIBRATION_TOKENS, layerwise
from sinkstudy.models.loading import encode, load_model, within_context
from sinkstudy.models.spec import pinned
from sinkstudy.prompts import read_prompts, spread_over_lengths
from sinkstudy.store import atomic_write
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    torch.set_num_threads(min(snakemake.threads, torch.get_num_threads()))
    loaded = load_model(pinned(snakemake.params.model, snakemake.input.model, Path.cwd()), snakemake.params.offload)
    texts = {one.id: one.text for one in read_prompts(Path(snakemake.input.prompts))}
    token_ids = within_context(loaded, encode(loaded, texts), "cut")
    chosen = [token_ids[name][:CALIBRATION_TOKENS] for name in spread_over_lengths(token_ids, CALIBRATION_PROMPTS)]
    calibration = [torch.tensor([ids], device=loaded.model.device) for ids in chosen]
    plan = layerwise(loaded.model, Plan.load(snakemake.input.plan), calibration, snakemake.params.budget)
    with atomic_write(snakemake.output[0]) as path:
        plan.save(path)
