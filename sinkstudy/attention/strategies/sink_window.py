"""The first tokens and a window of recent ones, as StreamingLLM (arXiv 2309.17453) and DuoAttention (2410.10819) do.

Exact attention over `sink_tokens` tokens at the start and the `window` latest, the query's own included. Positions stay
those of the whole text.
"""

import torch
from torch import Tensor

from sinkstudy.attention.strategies.contract import ReplacedHeads, Strategy

_BLOCK = 128  # queries at a time


def from_heads(heads: ReplacedHeads) -> Tensor:
    queries, keys = heads.query.shape[2], heads.key.shape[2]
    key, value, kv_head = heads.key, heads.value, heads.kv_head
    sinks = heads.first[:, None] + torch.arange(heads.sink_tokens, device=key.device)  # (batch, sink)
    inside = sinks < keys
    sinks = sinks.clamp(max=keys - 1)
    index = sinks[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[-1])
    sink_key, sink_value = key.gather(2, index), value.gather(2, index)
    rank, padding = _ranks(heads, keys)
    outputs = []  # only what a block reads is copied per query head, never the whole cache
    for start in range(0, queries, _BLOCK):
        block = slice(start, min(start + _BLOCK, queries))
        here = slice(keys - queries + block.start, keys - queries + block.stop)
        recent = slice(max(0, here.start - heads.window + 1 - padding), here.stop)
        position = torch.arange(here.start, here.stop, device=key.device)[:, None]
        slots = torch.arange(recent.start, recent.stop, device=key.device)
        near = (slots <= position) & (rank[:, None, recent] > rank[:, here, None] - heads.window)
        # A sink token that is also recent counts once, as a sink.
        near = near & (slots >= (heads.first + heads.sink_tokens)[:, None, None])  # (batch, query, recent)
        far = (sinks[:, None] <= position) & inside[:, None]  # (batch, query, sink)
        if heads.mask is not None:
            seen = heads.mask[:, 0, block].expand(sinks.shape[0], -1, -1)
            near = near & seen[..., recent]
            far = far & seen.gather(-1, sinks[:, None].expand(-1, seen.shape[1], -1))
        outputs.append(
            torch.nn.functional.scaled_dot_product_attention(
                heads.query[:, :, block],
                torch.cat([sink_key, key[:, :, recent]], 2)[:, kv_head],
                torch.cat([sink_value, value[:, :, recent]], 2)[:, kv_head],
                attn_mask=torch.cat([far, near], -1)[:, None],
                scale=heads.scale,
            )
        )
    return torch.cat(outputs, 2)


def _ranks(heads: ReplacedHeads, keys: int) -> tuple[Tensor, int]:
    """Position of each key among its sequence's tokens, (batch, key), and how much padding a sequence has at most."""
    if heads.mask is None:
        return torch.arange(keys, device=heads.key.device).expand(heads.key.shape[0], -1), 0
    real = heads.mask[:, 0].any(-2).expand(heads.key.shape[0], -1)
    return real.cumsum(-1), int((~real).sum(-1).max())


def _work(n: int, width: int, sink_tokens: int, window: int) -> float:
    full = sink_tokens + window
    keys = n * (n + 1) / 2 if n <= full else full * (full + 1) / 2 + (n - full) * full
    return 2 * width * keys


def _reads(n: int, sink_tokens: int, window: int) -> float:
    return min(1.0, (sink_tokens + window) / n)


SINK_WINDOW = Strategy(from_heads, work=_work, reads=_reads, values="all")
