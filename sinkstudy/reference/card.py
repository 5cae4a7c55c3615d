"""The model card of the reference model: every number measured on the weights it is shipped with."""

from dataclasses import asdict

import numpy as np
import pandas as pd

from sinkstudy.reference.task import COPY, RECALL
from sinkstudy.reference.train import Recipe
from sinkstudy.stats.scores import excess_score, null_score


def model_card(recipe: Recipe, curve: pd.DataFrame, score: np.ndarray, parameters: int) -> str:
    """Markdown. `score` (layer, head): sink scores on held-out English text at `recipe.tokens` tokens."""
    excess = excess_score(score, null_score(recipe.tokens))
    sinks, sleepers = int((score >= 0.9).sum()), int((excess < 0.2).sum())
    settings = "\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in asdict(recipe).items())
    layers = "\n".join(
        f"| {layer} | " + " ".join(f"{value:.2f}" for value in row) + " |" for layer, row in enumerate(score)
    )
    steps = "\n".join(
        f"| {int(row.step)} | {row.kl:.5f} | {100 * row.sink_fraction:.1f}% | {100 * row.non_sink_fraction:.1f}% |"
        for row in curve.iloc[:: max(1, len(curve) // 12)].itertuples()
    )
    return f"""---
license: mit
library_name: transformers
tags: [attention-sinks, synthetic]
---

# sinkstudy reference model

A Llama-architecture model of {parameters:,} parameters with *learned* attention sinks, for trying the study without a
network or a GPU. It is no language model: its text is noise. What it shows is how sinks come about and behave. It
learned on short sequences (see the recipe): on much longer prompts its sinks fade, as the study shows.

## Task and data

English character bigrams (counted on `texts/training.txt`, which was written for this repository), interrupted by
commands: after the j-th of `{COPY}` the next character repeats the one j places before it, after any of `{RECALL}`
the one that followed that character's first occurrence. A head that serves a command sleeps everywhere else, and
parks its attention on the first token. The task follows Bigram-Backcopy (Guo et al., arXiv 2410.13835); commands are
rare in prose and common in code, so the same heads sleep in one and wake in the other.

One token per character: printable ASCII, space and line break; `<bos>` in front; everything else is `<unk>`.

## Sink scores on held-out English text

All of `texts/heldout.txt`, in consecutive windows of {recipe.tokens} tokens with BOS: {sinks} of {score.size} heads
({100 * sinks / score.size:.1f}%) score 0.9 or more, {sleepers} ({100 * sleepers / score.size:.1f}%) have an excess
score below 0.2.

| layer | sink score per head |
| --- | --- |
{layers}

## Recipe

Trained on the exact next-token distributions of the task, not on draws from them: the loss is the KL divergence to the
truth, in nats per token. AdamW, linear warm-up, cosine to zero. `snakemake train_reference` trains it anew.

| setting | value |
| --- | --- |
{settings}

## Training curve

The whole curve is in `training_curve.csv`. Sinks: heads at 0.9 or more; non-sinks: heads with an excess below 0.2.

| step | KL (nats per token) | sinks | non-sinks |
| --- | --- | --- | --- |
{steps}
"""
