"""Measure what every plan and strategy does to one model's predictions and answers."""

from pathlib import Path

import torch

from sinkstudy.attention.plan import Plan
from sinkstudy.evaluation.answers import answers_table
from sinkstudy.evaluation.benchmark import usable_lengths, windows
from sinkstudy.evaluation.quality import quality_table
from sinkstudy.evaluation.retrieval import retrieval_table
from sinkstudy.evaluation.variants import variants_of
from sinkstudy.models.loading import encode, load_model, tokenize
from sinkstudy.models.spec import pinned
from sinkstudy.prompts import read_prompts, spread_over_lengths
from sinkstudy.store.tables import write_table
from sinkstudy.workflow.joblog import job_log

# Predictions are compared on so many stretches of the text at each length.
_WINDOWS = 2

with job_log(snakemake.log[0]):
    torch.set_num_threads(min(snakemake.threads, torch.get_num_threads()))
    params, name = snakemake.params, snakemake.wildcards.model
    loaded = load_model(pinned(params.model, snakemake.input.model, Path.cwd()), params.offload)
    model, text = loaded.model, Path(snakemake.input.text)
    variants = variants_of(model, [Plan.load(path) for path in snakemake.input.plans], params.strategies)
    read = read_prompts(Path(snakemake.input.prompts))
    token_ids = encode(loaded, {one.id: one.text for one in read})
    sets, chosen = {one.id: one.set for one in read}, spread_over_lengths(token_ids, params.answer_prompts)
    answered = [(one, sets[one], torch.tensor([token_ids[one]], device=model.device)) for one in chosen]
    held_out = tokenize(loaded, text.read_text(encoding="utf-8"), prompt=text.name)
    lengths = usable_lengths(model, name, len(held_out), params.lengths)
    texts = [("held-out", ids[None]) for ids in windows(held_out, max(lengths), _WINDOWS).to(model.device)]
    found = retrieval_table(model, name, loaded.piece, held_out, variants, lengths, params.retrieval_cases)
    write_table(found, snakemake.output.retrieval)
    write_table(quality_table(model, name, texts, variants, lengths), snakemake.output.quality)
    write_table(answers_table(model, name, answered, variants, params.answer_tokens), snakemake.output.answers)
