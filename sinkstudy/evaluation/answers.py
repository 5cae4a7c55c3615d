"""Whole answers: how far greedy generation under a plan stays with the unmodified model's text."""

import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sinkstudy.evaluation.variants import SDPA, Variant, running

_COLUMNS = [
    "model",
    "set",
    "prompt",
    "n_tokens",
    "strategy",
    "policy",
    "depth",
    "answer_tokens",
    "identical",
    "departs_at",
]


def answers_table(
    model: PreTrainedModel,
    name: str,
    prompts: Sequence[tuple[str, str, Tensor]],
    variants: Sequence[Variant],
    answer_tokens: int,
) -> pd.DataFrame:
    """One row per variant and prompt: whether the greedy answer of `answer_tokens` tokens is that of the unmodified
    model, and the first of its tokens (from 1) that is another; empty where none is.

    `prompts`: id, set and token ids (1, query). Prompts are answered in batches with left padding. Left out are prompts
    beyond a plan's `max_tokens`, which run unchanged, those that leave no room for the answer in the model's context,
    and variants that decide heads from the input, since a batch would decide for all its prompts together.
    """
    fixed = [v for v in variants if v.plan is not None and v.plan.first_layer_threshold is None]
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    fitting = sorted((p for p in prompts if p[2].shape[1] + answer_tokens <= context), key=lambda p: p[2].shape[1])
    rows, expected = [], {}
    for variant in fixed:
        limit = variant.plan.max_tokens
        batch = [prompt for prompt in fitting if limit is None or prompt[2].shape[1] <= limit]
        if batch and limit not in expected:
            expected[limit] = _answers(model, SDPA, batch, answer_tokens)
        answers = _answers(model, variant, batch, answer_tokens) if batch else []
        for (prompt, set_name, ids), answer, other in zip(batch, expected.get(limit, []), answers, strict=True):
            differs = torch.nonzero(answer != other).flatten().tolist()
            cells = [name, set_name, prompt, ids.shape[1], variant.strategy, variant.policy, variant.depth]
            rows.append([*cells, answer_tokens, not differs, differs[0] + 1 if differs else math.nan])
    return pd.DataFrame(rows, columns=_COLUMNS)


def _answers(
    model: PreTrainedModel, variant: Variant, batch: Sequence[tuple[str, str, Tensor]], answer_tokens: int
) -> Tensor:
    """(prompt, answer token) ids."""
    longest = max(ids.shape[1] for _, _, ids in batch)
    pad = model.config.get_text_config().eos_token_id or 0
    pad = pad[0] if isinstance(pad, list) else pad
    inputs = torch.full((len(batch), longest), pad, device=model.device)
    mask = torch.zeros_like(inputs)
    for row, (_, _, ids) in enumerate(batch):
        inputs[row, longest - ids.shape[1] :] = ids[0]
        mask[row, longest - ids.shape[1] :] = 1
    with running(model, variant), torch.inference_mode():
        answered = model.generate(
            inputs,
            attention_mask=mask,
            do_sample=False,
            min_new_tokens=answer_tokens,
            max_new_tokens=answer_tokens,
            pad_token_id=pad,
        )
    return answered[:, longest:]
