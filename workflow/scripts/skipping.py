"""Replace the heads of every plan of one model, and as many others in the same layers."""

from pathlib import Path

import torch

from sinkstudy.attention.plan import Plan
from sinkstudy.evaluation.skipping import skipping_table
from sinkstudy.evaluation.variants import takes_plans
from sinkstudy.models.loading import load_model, tokenize
from sinkstudy.models.spec import pinned
from sinkstudy.stats.resampling import Resampling
from sinkstudy.stats.stand_ins import with_scores
from sinkstudy.store.tables import LongTable, read_tables, write_table
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    torch.set_num_threads(min(snakemake.threads, torch.get_num_threads()))
    params, name = snakemake.params, snakemake.wildcards.model
    loaded = load_model(pinned(params.model, snakemake.input.model, Path.cwd()), params.offload)
    text = Path(snakemake.input.text)
    token_ids = tokenize(loaded, text.read_text(encoding="utf-8"), prompt=text.name)
    plans = [Plan.load(path) for path in snakemake.input.plans] if takes_plans(loaded.model) else []
    heads = read_tables([snakemake.input.heads])
    activations = LongTable([snakemake.input.activations]).only(lambda rows: rows["head"].notna())
    heads = with_scores(heads.loc[heads["set"] == "all", ["model", "layer", "head"]], heads, activations)
    resampling = Resampling(**params.resampling)
    table = skipping_table(loaded.model, name, token_ids, plans, heads, params.lengths, resampling)
    write_table(table, snakemake.output[0])
