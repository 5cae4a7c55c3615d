"""Attention with its weights formed explicitly: what `reuse` takes from the first layer, and all it needs where a call
is so small that a fused kernel takes longer than the arithmetic.

Query heads that read one KV head are so many more rows of one product; no key or value is repeated for them.
"""

from functools import lru_cache

import torch
from torch import Tensor

from sinkstudy.attention.layout import KvReads, is_small, take

_BLOCK = 256  # queries at a time: later keys, on which their weights are zero, are left out


def pattern_of(query: Tensor, key: Tensor, reads: KvReads, mask: Tensor | None, scale: float) -> Tensor:
    """Attention (batch, head, query, key) float32 of `query` (batch, head, query, width), causal without a mask.

    `key` (batch, kv_head, key, width); `mask` (batch, 1, query, key) bool.
    """
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    key = take(key, reads.kv_read if reads.per_kv else reads.kv_head)
    # Scale and mask in one operation; not in float16, whose range scores may leave before they are scaled.
    together = mask is None and queries > 1 and is_small(query, key) and query.dtype != torch.float16
    flat = (query if together else query * scale).reshape(-1, (reads.per_kv or 1) * queries, width)
    scores = torch.bmm(flat, key.flatten(0, 1).transpose(1, 2)).view(batch, heads, queries, keys)
    if together:
        scores = torch.add(_kept_later(queries, keys, scores.device), scores, alpha=scale)
    elif mask is not None:
        # A padding query sees nothing: its softmax is undefined, and its row is never read.
        return torch.softmax(scores.float().masked_fill_(~mask, float("-inf")), -1).nan_to_num()
    elif queries > 1:
        # Adding a mask takes a quarter of the time of filling in by one.
        scores = scores.float().add_(_later(queries, keys, scores.device))
    return torch.softmax(scores, -1, dtype=torch.float32)


def apply_pattern(pattern: Tensor, value: Tensor, reads: KvReads) -> Tensor:
    """Outputs (batch, head, query, width) from `value` (batch, kv_head, key, width), of attention that is causal."""
    pattern = pattern.to(value.dtype)
    batch, heads, queries, keys = pattern.shape
    if queries <= _BLOCK and reads.per_kv:
        flat = pattern.reshape(-1, reads.per_kv * queries, keys)
        outputs = torch.bmm(flat, take(value, reads.kv_read).flatten(0, 1))
        return outputs.view(batch, heads, queries, -1)
    value = take(value, reads.kv_head)
    parts = []
    for start in range(0, queries, _BLOCK):
        seen = keys - queries + min(start + _BLOCK, queries)
        parts.append(pattern[:, :, start : start + _BLOCK, :seen] @ value[:, :, :seen])
    return torch.cat(parts, 2) if len(parts) > 1 else parts[0]


@torch.inference_mode(False)  # what is kept may be needed for a gradient later
def _later(queries: int, keys: int, device: torch.device) -> Tensor:
    """What is added to scores (query, key): minus infinity on keys that come after the query."""
    return torch.full((queries, keys), float("-inf"), device=device).triu_(keys - queries + 1)


_kept_later = lru_cache(maxsize=64)(_later)
