"""Train the reference model and write it with its tokenizer, training curve and model card."""

from pathlib import Path

import torch

from sinkstudy.reference.card import model_card
from sinkstudy.reference.train import Recipe, evaluate, save, train
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    torch.set_num_threads(min(snakemake.threads, torch.get_num_threads()))
    recipe, folder = Recipe(), Path(snakemake.output[0])
    text, held_out = (
        Path(path).read_text(encoding="utf-8") for path in (snakemake.input.text, snakemake.input.evaluation)
    )
    model, curve = train(recipe, text, held_out)
    unfinished = folder.with_name(f".{folder.name}.tmp")
    save(model, curve, recipe, unfinished)
    card = model_card(recipe, curve, evaluate(model, held_out, recipe.tokens), parameters=model.num_parameters())
    (unfinished / "README.md").write_text(card, encoding="utf-8")
    unfinished.replace(folder)
