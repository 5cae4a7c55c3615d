"""Write what every head of one model would cost, what could stand in for that, and the plan that spends a budget."""

from dataclasses import replace
from pathlib import Path

import torch

from sinkstudy.evaluation.budget import budget, calibration_texts, checked_facts, window_plan
from sinkstudy.evaluation.head_costs import head_costs
from sinkstudy.evaluation.onset import from_where_it_pays
from sinkstudy.evaluation.retrieval import asked_texts
from sinkstudy.evaluation.variants import takes_plans
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
    loaded = load_model(pinned(params.model, snakemake.input.model, Path.cwd()), params.offload)
    model = loaded.model
    length = min(spending["tokens"], context_length(model) or spending["tokens"])
    texts = calibration_texts([one.text for one in read_prompts(Path(snakemake.input.prompts))])
    fit, check = (tokenize(loaded, text, "calibration") for text in texts)
    facts = checked_facts(loaded.piece, check, min(length, len(check)), spending["retrieval"])
    asked = asked_texts(loaded.piece, fit, min(length, len(fit))) if spending["retrieval"] else []
    fit, check = (torch.tensor([ids[:length]], device=model.device) for ids in (fit, check))
    plans = [window_plan(params.sink_tokens, window, params.max_tokens) for window in spending["window"]]
    priced = [*plans, replace(plans[0], strategy="first_value")] if takes_plans(model) else []
    costs = head_costs(model, fit, priced, params.seed, asked)
    with atomic_write(snakemake.output.plan) as path:
        limits = spending["kl"], facts, spending["retrieval"], spending["whole_groups"]
        from_where_it_pays(model, budget(model, plans[0], costs, check, *limits)).save(path)
    heads = read_tables([snakemake.input.heads])
    activations = LongTable([snakemake.input.activations]).only(lambda rows: rows["head"].notna())
    costs = with_scores(costs.assign(model=snakemake.wildcards.model), heads, activations)
    write_table(costs, snakemake.output.costs)
    write_table(stand_in_table(costs), snakemake.output.stand_ins)
