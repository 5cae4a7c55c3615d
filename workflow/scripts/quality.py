"""Measure what every plan and strategy does to one model's predictions and answers."""

from pathlib import Path

import torch

from sinkstudy.attention.plan import Plan
from sinkstudy.evaluation.answers import answers_table, sample
from sinkstudy.evaluation.benchmark import usable_lengths, windows
from sinkstudy.evaluation.quality import quality_table
from sinkstudy.evaluation.variants import runs_on_sdpa, variants_of
from sinkstudy.models.loading import encode, load_model, tokenize
from sinkstudy.models.spec import pinned
from sinkstudy.prompts import read_prompts
from sinkstudy.store.tables import write_table
from sinkstudy.workflow.joblog import job_log

_WINDOWS = 4

with job_log(snakemake.log[0]):
    torch.set_num_threads(min(snakemake.threads, torch.get_num_threads()))
    params, name = snakemake.params, snakemake.wildcards.model
    loaded = load_model(pinned(params.model, snakemake.input.model, Path.cwd()))
    model, text = loaded.model, Path(snakemake.input.text)
    plans = [Plan.load(path) for path in snakemake.input.plans] if runs_on_sdpa(model) else []
    variants = variants_of(model, plans, params.strategies)
    read = read_prompts(Path(snakemake.input.prompts))
    tokens = encode(loaded, {one.id: one.text for one in read})
    prompts = [(one.id, one.set, torch.tensor([tokens[one.id]], device=model.device)) for one in read]
    answered = sample(prompts, params.answer_prompts)
    held_out = tokenize(loaded, text.read_text(encoding="utf-8"), prompt=text.name)
    lengths = usable_lengths(model, name, len(held_out), params.lengths)
    texts = [("held-out", ids[None]) for ids in windows(held_out, max(lengths), _WINDOWS).to(model.device)]
    write_table(quality_table(model, name, texts, variants, lengths), snakemake.output.quality)
    write_table(answers_table(model, name, answered, variants, params.answer_tokens), snakemake.output.answers)
