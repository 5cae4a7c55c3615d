"""Time one model under every plan and strategy, beside eager attention and SDPA."""

from pathlib import Path

import torch

from sinkstudy.attention.plan import Plan
from sinkstudy.evaluation.benchmark import benchmark_table
from sinkstudy.models.loading import load_model, tokenize
from sinkstudy.models.spec import pinned
from sinkstudy.store.tables import write_table
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    torch.set_num_threads(min(snakemake.threads, torch.get_num_threads()))
    loaded = load_model(pinned(snakemake.params.model, snakemake.input.model, Path.cwd()), snakemake.params.offload)
    text = Path(snakemake.input.text)
    token_ids = tokenize(loaded, text.read_text(encoding="utf-8"), prompt=text.name)
    plans = [Plan.load(path) for path in snakemake.input.plans]
    table = benchmark_table(loaded.model, snakemake.wildcards.model, token_ids, plans, snakemake.params.grid)
    write_table(table, snakemake.output[0])
