"""Attention with its weights formed explicitly: what the first layer decides from, and what `reuse` takes over."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sinkstudy.attention.heads import AttentionInputs, as_index, select_heads


def attention_pattern(inputs: AttentionInputs, heads: Sequence[int]) -> Tensor:
    """Attention (batch, head, query, key) float32 of these query heads."""
    query, key, mask = inputs.query, inputs.key, inputs.mask
    group_size, device = query.shape[1] // key.shape[1], query.device
    # The query is scaled before the product, because unscaled scores can exceed the range of float16.
    query = select_heads(query, as_index(tuple(heads), device)) * inputs.scale
    key = select_heads(key, as_index(tuple(h // group_size for h in heads), device))
    scores = (query @ key.transpose(2, 3)).float()
    if mask is None:
        queries, keys = scores.shape[2:]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril_(keys - queries)
    # A padding query sees nothing: its softmax is undefined, and its row is never read.
    return torch.softmax(scores.masked_fill_(~mask, float("-inf")), -1).nan_to_num()


def sink_heads(inputs: AttentionInputs, threshold: float) -> tuple[int, ...]:
    """Heads whose sink score reaches the threshold in every sequence of the batch."""
    pattern, mask = attention_pattern(inputs, range(inputs.query.shape[1])), inputs.mask
    if mask is None:
        score = pattern[..., 0].mean(-1)
    else:
        # The first token is the first key that any query may see.
        first = mask.any(-2, keepdim=True).int().argmax(-1, keepdim=True).expand(*pattern.shape[:3], 1)
        mass = pattern.gather(-1, first)[..., 0]  # (batch, head, query)
        real = mask.any(-1).expand_as(mass)
        score = (mass * real).sum(-1) / real.sum(-1)
    return tuple(torch.nonzero((score >= threshold).all(0)).flatten().tolist())
