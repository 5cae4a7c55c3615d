"""Write what every head of one model would cost, what could stand in for that, and the plan that spends a budget."""

from dataclasses import replace
from pathlib import Path

import torch

from sinkstudy.evaluation.budget import budget, calibration_texts, window_plan
from sinkstudy.evaluation.head_costs import head_costs
from sinkstudy.evaluation.variants import runs_on_sdpa
from sinkstudy.models.loading import context_length, load_model, tokenize
from sinkstudy.models.spec import pinned
from sinkstudy.prompts import read_prompts
from sinkstudy.stats.stand_ins import stand_in_table, with_scores
from sinkstudy.store import atomic_write
from sinkstudy.store.tables import LongTable, read_tables, write_table
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    torch.set_num_threads(min(snakemake.threads, torch.get_num_threads()))
    params, spending = snakemake.params, snakemake.params.budget
    loaded = load_model(pinned(params.model, snakemake.input.model, Path.cwd()))
    model = loaded.model
    length = min(spending["tokens"], context_length(model) or spending["tokens"])
    texts = calibration_texts([one.text for one in read_prompts(Path(snakemake.input.prompts))])
    fit, check = (torch.tensor([tokenize(loaded, text, "calibration")[:length]], device=model.device) for text in texts)
    plan = window_plan(params.sink_tokens, spending["window"], params.max_tokens)
    plans = [plan, replace(plan, strategy="first_value")] if runs_on_sdpa(model) else []
    costs = head_costs(model, fit, plans, params.seed)
    with atomic_write(snakemake.output.plan) as path:
        budget(model, plan, costs, check, spending["kl"]).save(path)
    heads = read_tables([snakemake.input.heads])
    activations = LongTable([snakemake.input.activations]).only(lambda rows: rows["head"].notna())
    costs = with_scores(costs.assign(model=snakemake.wildcards.model), heads, activations)
    write_table(costs, snakemake.output.costs)
    write_table(stand_in_table(costs), snakemake.output.stand_ins)
