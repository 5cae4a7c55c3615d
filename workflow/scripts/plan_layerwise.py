"""Write the plan of one model that keeps only layers whose heads are cheap to replace."""

from pathlib import Path

import torch

from sinkstudy.attention.plan import Plan
from sinkstudy.evaluation.answers import sample
from sinkstudy.evaluation.policies import CALIBRATION_PROMPTS, CALIBRATION_TOKENS, layerwise
from sinkstudy.models.loading import encode, load_model, within_context
from sinkstudy.models.spec import pinned
from sinkstudy.prompts import read_prompts
from sinkstudy.store import atomic_write
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    torch.set_num_threads(min(snakemake.threads, torch.get_num_threads()))
    loaded = load_model(pinned(snakemake.params.model, snakemake.input.model, Path.cwd()))
    texts = {one.id: one.text for one in read_prompts(Path(snakemake.input.prompts))}
    prompts = within_context(loaded, encode(loaded, texts), "cut")
    ids = [(name, "", torch.tensor([tokens], device=loaded.model.device)) for name, tokens in prompts.items()]
    calibration = [tokens[:, :CALIBRATION_TOKENS] for _, _, tokens in sample(ids, CALIBRATION_PROMPTS)]
    plan = layerwise(loaded.model, Plan.load(snakemake.input.plan), calibration, snakemake.params.budget)
    with atomic_write(snakemake.output[0]) as path:
        plan.save(path)
