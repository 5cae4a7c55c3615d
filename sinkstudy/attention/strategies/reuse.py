"""The first layer's attention pattern applied to this layer's values: the original study's proposal."""

import torch
from torch import Tensor

from sinkstudy.attention.strategies.contract import ReplacedHeads, Strategy

_BLOCK = 256  # queries at a time: later keys, on which their pattern is zero, are left out


def from_heads(heads: ReplacedHeads) -> Tensor:
    pattern = heads.first_layer_map().to(heads.value.dtype)  # (batch, head, query, key)
    queries, keys = pattern.shape[-2:]
    if heads.per_kv == 1 and queries <= _BLOCK:
        return pattern @ heads.value[:, heads.kv_read]
    if heads.per_kv and queries <= _BLOCK:
        # Heads that read one KV head are so many more rows of one product.
        rows = pattern.unflatten(1, (-1, heads.per_kv)).flatten(2, 3)
        return (rows @ heads.value[:, heads.kv_read]).unflatten(2, (heads.per_kv, queries)).flatten(1, 2)
    value = heads.value[:, heads.kv_head]
    parts = []
    for start in range(0, queries, _BLOCK):
        seen = keys - queries + min(start + _BLOCK, queries)
        parts.append(pattern[:, :, start : start + _BLOCK, :seen] @ value[:, :, :seen])
    return torch.cat(parts, 2) if len(parts) > 1 else parts[0]


REUSE = Strategy(
    from_heads,
    work=lambda n, width, *_: width * n * (n + 1) / 2,
    reads=lambda *_: 0.5,
    projects=("value",),
    needs_first_layer=True,
)
