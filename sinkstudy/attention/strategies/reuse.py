"""The first layer's attention pattern applied to this layer's values: the original study's proposal."""

import torch
from torch import Tensor

from sinkstudy.attention.strategies.contract import ReplacedHeads, Strategy

_BLOCK = 256  # queries at a time: later keys, on which their pattern is zero, are left out


def from_heads(heads: ReplacedHeads) -> Tensor:
    pattern = heads.first_layer_map()  # (batch, head, query, key)
    value = heads.value[:, heads.kv_head]
    return apply_pattern(pattern.to(value.dtype), value)


def apply_pattern(pattern: Tensor, value: Tensor) -> Tensor:
    """(batch, head, query, key) x (batch, head, key, width), the last query being the last key's."""
    queries, keys = pattern.shape[-2:]
    if queries <= _BLOCK:
        return pattern @ value
    parts = []
    for start in range(0, queries, _BLOCK):
        seen = keys - queries + min(start + _BLOCK, queries)
        parts.append(pattern[:, :, start : start + _BLOCK, :seen] @ value[:, :, :seen])
    return torch.cat(parts, 2)


REUSE = Strategy(
    from_heads,
    work=lambda n, width, *_: width * n * (n + 1) / 2,
    reads=lambda *_: 0.5,
    projects=("value",),
    needs_first_layer=True,
)
