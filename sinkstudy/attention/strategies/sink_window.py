"""The first tokens and a window of recent ones, as StreamingLLM (arXiv 2309.17453) and DuoAttention (2410.10819) do.

Exact attention over `sink_tokens` tokens at the start and the `window` latest, the query's own included. Positions stay
those of the whole text. Of a cache of its own it keeps those tokens alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sinkstudy.attention.heads import select_heads
from sinkstudy.attention.strategies.contract import ReplacedHeads, Strategy

# At least so many queries share one stretch of keys, or an eighth of a long window: smaller blocks copy keys too often.
_BLOCK = 64
_MASKED_BLOCK = 128
# Decoding forgets so many tokens at once, because forgetting copies all that stay.
_SPARE = 64


def from_heads(heads: ReplacedHeads) -> Tensor:
    queries, keys = heads.query.shape[2], heads.key.shape[2]
    if heads.mask is None and queries == 1:
        return _last_query(heads)
    if heads.mask is None and heads.start == 0 and queries == keys:
        return _whole_prompt(heads)
    return _masked(heads)


def _whole_prompt(heads: ReplacedHeads) -> Tensor:
    """A prompt without padding or anything before it: its first queries see all there is, which is plain causal
    attention, and the others go in blocks of one length, and one that is shorter."""
    n, size = heads.query.shape[2], heads.to_kv.group_size or 1
    kv = heads.to_kv.unique if heads.to_kv.group_size else heads.to_kv.index
    key, value = select_heads(heads.key, kv), select_heads(heads.value, kv)
    full, block = heads.sink_tokens + heads.window, max(_BLOCK, heads.window // 8)
    early = (states[:, :, :full] for states in (heads.query, key, value))
    outputs = [scaled_dot_product_attention(*early, is_causal=True, scale=heads.scale, enable_gqa=size > 1)]
    edge = max(full, n - (n - full) % block)
    for start, stop, length in ((full, edge, block), (edge, n, n - edge)):
        if start < stop:
            outputs.append(_in_blocks(heads, key, value, start, stop, length))
    _shorten(heads, _front(heads), heads.window - 1)
    return torch.cat(outputs, 2)


def _in_blocks(heads: ReplacedHeads, key: Tensor, value: Tensor, start: int, stop: int, length: int) -> Tensor:
    """Outputs (batch, head, query, width) of the queries `start` to `stop`, all of which are past the sinks and a
    window. Blocks of `length` queries are folded into the batch: one mask says for all of them which keys each query
    sees, of the sinks and of the stretch that the windows of its block span."""
    sinks, window, size = heads.sink_tokens, heads.window, heads.to_kv.group_size or 1
    count, span = (stop - start) // length, window - 1 + length

    def keys_of_blocks(states: Tensor) -> Tensor:
        stretches = states[:, :, start - window + 1 : stop].unfold(
            2, span, length
        )  # (batch, kv_head, block, width, key)
        stretches = stretches.permute(0, 2, 1, 4, 3).flatten(0, 1)  # (batch x block, kv_head, key, width)
        return torch.cat([states[:, :, :sinks].repeat_interleave(count, 0), stretches], 2)

    # Query heads that read one KV head stand below each other: (batch x block, kv_head, head of it x query, width).
    query = heads.query[:, :, start:stop].unflatten(2, (count, length)).unflatten(1, (-1, size))
    query = query.permute(0, 3, 1, 2, 4, 5).flatten(3, 4).flatten(0, 1)
    near = torch.ones(length, span, dtype=torch.bool, device=query.device).triu().tril(window - 1)
    seen = torch.nn.functional.pad(near, (sinks, 0), value=True).repeat(size, 1)
    output = scaled_dot_product_attention(
        query, keys_of_blocks(key), keys_of_blocks(value), attn_mask=seen, scale=heads.scale
    )
    output = output.unflatten(2, (size, length)).unflatten(0, (-1, count))
    return output.permute(0, 2, 3, 1, 4, 5).flatten(3, 4).flatten(1, 2)


def _masked(heads: ReplacedHeads) -> Tensor:
    """Any call, such as of a padded batch, or of a piece of a prompt after another."""
    queries, kv_head = heads.query.shape[2], heads.to_kv.index
    end = heads.start + heads.key.shape[2]
    tokens = _Tokens.of(heads, end)
    sink_key, sink_value = _sinks(heads, tokens)
    device = heads.query.device
    outputs = []  # only what a block reads is copied per query head, never the whole cache
    for start in range(0, queries, _MASKED_BLOCK):
        block = slice(start, min(start + _MASKED_BLOCK, queries))
        here = slice(end - queries + block.start, end - queries + block.stop)
        recent = slice(max(heads.start, here.start - heads.window + 1 - tokens.padding), here.stop)
        position = torch.arange(here.start, here.stop, device=device)[:, None]
        near = torch.arange(recent.start, recent.stop, device=device) <= position
        near = near & (tokens.rank[:, None, recent] > tokens.rank[:, here, None] - heads.window)
        # A sink token that is also recent counts once, as a sink.
        near = near & (tokens.rank[:, None, recent] >= heads.sink_tokens)  # (batch, query, recent)
        far = (tokens.sink[:, None] <= position) & tokens.there[:, None]  # (batch, query, sink)
        if heads.mask is not None:
            seen = heads.mask[:, 0, block].expand(heads.query.shape[0], -1, -1)
            near = near & seen[..., recent]
            far = far & seen.gather(-1, tokens.sink[:, None].expand(-1, seen.shape[1], -1))
        stored = slice(recent.start - heads.start, recent.stop - heads.start)
        outputs.append(
            scaled_dot_product_attention(
                heads.query[:, :, block],
                torch.cat([sink_key, heads.key[:, :, stored]], 2)[:, kv_head],
                torch.cat([sink_value, heads.value[:, :, stored]], 2)[:, kv_head],
                attn_mask=torch.cat([far, near], -1)[:, None],
                scale=heads.scale,
            )
        )
    if heads.start or tokens.there.all():
        _shorten(heads, (sink_key, sink_value), heads.window - 1 + tokens.padding)
    return torch.cat(outputs, 2)


def _last_query(heads: ReplacedHeads) -> Tensor:
    """The query of the last token, without padding: it sees the sinks and the window, whatever is stored between."""
    stored, full = heads.key.shape[2], heads.sink_tokens + heads.window
    key, value, seen = heads.key, heads.value, None
    if stored > full + _SPARE:
        key, value = (
            torch.cat([states[:, :, : heads.sink_tokens], states[:, :, -heads.window :]], 2) for states in (key, value)
        )
    elif stored > full:
        place = torch.arange(stored, device=key.device)
        seen = (place < heads.sink_tokens) | (place >= stored - heads.window)
    index = heads.to_kv.unique if heads.to_kv.group_size else heads.to_kv.index
    output = scaled_dot_product_attention(
        heads.query,
        select_heads(key, index),
        select_heads(value, index),
        attn_mask=None if seen is None else seen[None],
        scale=heads.scale,
        enable_gqa=heads.to_kv.group_size is not None,
    )
    if stored >= full + _SPARE:
        _shorten(heads, _front(heads), heads.window - 1)
    return output


@dataclass(frozen=True)
class _Tokens:
    """`rank` (batch, key): how many tokens of its sequence come before it. `sink` (batch, sink): places of the first
    tokens, those that are `there` already. `padding`: how much of it a sequence has at most."""

    rank: Tensor
    sink: Tensor
    there: Tensor
    padding: int

    @classmethod
    def of(cls, heads: ReplacedHeads, keys: int) -> "_Tokens":
        batch, device = heads.query.shape[0], heads.query.device
        wanted = torch.arange(heads.sink_tokens, device=device).expand(batch, -1)
        if heads.mask is None:
            rank = torch.arange(keys, device=device).expand(batch, -1)
            return cls(rank, wanted.clamp(max=keys - 1), wanted < keys, 0)
        real = heads.real_keys()
        rank = real.cumsum(-1) - 1
        reached = rank[:, None] >= wanted[:, :, None]  # (batch, sink, key)
        return cls(rank, reached.int().argmax(-1), reached.any(-1), int((~real).sum(-1).max()))


def _sinks(heads: ReplacedHeads, tokens: _Tokens) -> tuple[Tensor, Tensor]:
    """Keys and values of the first tokens, (batch, kv_head, sink, width)."""
    if heads.start:  # They were moved to the front when what lies between was forgotten.
        return _front(heads)
    index = tokens.sink[:, None, :, None].expand(-1, heads.key.shape[1], -1, 1)
    return tuple(states.gather(2, index.expand(-1, -1, -1, states.shape[-1])) for states in (heads.key, heads.value))


def _front(heads: ReplacedHeads) -> tuple[Tensor, Tensor]:
    return heads.key[:, :, : heads.sink_tokens], heads.value[:, :, : heads.sink_tokens]


def _shorten(heads: ReplacedHeads, sinks: tuple[Tensor, Tensor], recent: int) -> None:
    """Forget what no later query reads: all but the first tokens, which every sequence has, and the `recent` last."""
    if "key" in heads.memory and heads.sink_tokens + recent < heads.key.shape[2]:
        for name, first, states in (("key", sinks[0], heads.key), ("value", sinks[1], heads.value)):
            heads.memory[name] = torch.cat([first, states[:, :, states.shape[2] - recent :]], 2)


def _work(n: int, width: int, sink_tokens: int, window: int) -> float:
    full = sink_tokens + window
    keys = n * (n + 1) / 2 if n <= full else full * (full + 1) / 2 + (n - full) * full
    return 2 * width * keys


def _reads(n: int, sink_tokens: int, window: int) -> float:
    return min(1.0, (sink_tokens + window) / n)


SINK_WINDOW = Strategy(from_heads, work=_work, reads=_reads, forgets_tokens=True)
