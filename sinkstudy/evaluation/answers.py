"""Whole answers: how far greedy generation under a plan stays with the unmodified model's text."""

import math
from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from sinkstudy.evaluation.variants import SDPA, Variant, at_work, running
from sinkstudy.models.loading import context_length

_BATCH_TOKENS = 2048  # a batch holds at most so many tokens, padding included
_COLUMNS = ["model", "set", "prompt", "n_tokens", "strategy", "policy", "depth"]
_COLUMNS += ["answer_tokens", "identical", "departs_at"]


def answers_table(
    model: PreTrainedModel,
    name: str,
    prompts: Sequence[tuple[str, str, Tensor]],
    variants: Sequence[Variant],
    answer_tokens: int,
) -> pd.DataFrame:
    """One row per variant and prompt: whether the greedy answer of `answer_tokens` tokens is that of the unmodified
    model, and the first of its tokens (from 1) that is another; empty where none is.

    `prompts`: id, set and token ids (1, query). They are answered in batches with left padding and the KV cache. Left
    out are prompts of a length that a plan does not cover, which run unchanged, those that leave no room for the answer
    in the model's context, and variants that decide heads from the input, since a batch would decide for all its
    prompts together. Plans that do the same are run once.
    """
    context = context_length(model) or math.inf
    fitting = sorted((p for p in prompts if p[2].shape[1] + answer_tokens <= context), key=lambda p: p[2].shape[1])
    by_cover: dict[tuple[int, ...], list[Variant]] = {}  # the prompts that plans cover, and those plans
    for variant in variants:
        if variant.plan.first_layer_threshold is None:
            covered = tuple(i for i, prompt in enumerate(fitting) if variant.plan.covers(prompt[2].shape[1]))
            by_cover.setdefault(covered, []).append(variant)
    by_cover.pop((), None)
    rows = []
    for covered, alike in by_cover.items():
        answered = [fitting[i] for i in covered]
        expected = _answers(model, SDPA, answered, answer_tokens)
        for one in at_work(model, alike, answered[0][2]):
            answers = _answers(model, one.variant, answered, answer_tokens)
            for (prompt, set_name, ids), answer, other in zip(answered, expected, answers, strict=True):
                differs = torch.nonzero(answer != other).flatten().tolist()
                here = {"model": name, "set": set_name, "prompt": prompt, "n_tokens": ids.shape[1]}
                here |= {"answer_tokens": answer_tokens, "identical": not differs}
                here |= {"departs_at": differs[0] + 1 if differs else math.nan}
                rows += [here | cells for cells in one.cells()]
    return pd.DataFrame(rows, columns=_COLUMNS)


@torch.inference_mode()
def _answers(
    model: PreTrainedModel, variant: Variant, prompts: Sequence[tuple[str, str, Tensor]], answer_tokens: int
) -> Tensor:
    """(prompt, answer token) ids."""
    pad = model.config.get_text_config().eos_token_id or 0
    pad = pad[0] if isinstance(pad, list) else pad
    answers = []
    with running(model, variant):
        for batch in _batches([ids[0] for _, _, ids in prompts]):
            inputs = pad_sequence(batch, True, pad, "left").to(model.device)
            answered = model.generate(
                inputs,
                attention_mask=pad_sequence(list(map(torch.ones_like, batch)), True, 0, "left").to(model.device),
                do_sample=False,
                min_new_tokens=answer_tokens,
                max_new_tokens=answer_tokens,
                pad_token_id=pad,
            )
            answers.append(answered[:, inputs.shape[1] :])
    return torch.cat(answers)


def _batches(prompts: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Prompts (query,), in ascending order of length, as many together as fill the budget when padded."""
    batch: list[Tensor] = []
    for ids in prompts:
        if batch and (len(batch) + 1) * len(ids) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(ids)
    if batch:
        yield batch
