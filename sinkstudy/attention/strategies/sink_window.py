"""The first tokens and a window of recent ones, as StreamingLLM (arXiv 2309.17453) and DuoAttention (2410.10819) do.

Exact attention over `sink_tokens` tokens at the start and the `window` latest, the query's own included. Positions stay
those of the whole text. Of a cache of its own it keeps those tokens alone.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sinkstudy.attention.heads import select_heads
from sinkstudy.attention.strategies.contract import ReplacedHeads, Strategy

# This many queries form a block and share its keys. Where keys are copied, blocks are an eighth of a long window.
_BLOCK = 64
_MASKED_BLOCK = 128


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
    (batch, count, n, _), size = heads.query.shape, heads.to_kv.group_size or 1
    kv = heads.to_kv.unique if heads.to_kv.group_size else heads.to_kv.index
    key, value = select_heads(heads.key, kv), select_heads(heads.value, kv)
    # The layer stores queries before heads, so outputs in that order are copied into it as whole rows.
    output = heads.query.new_empty(batch, n, count, value.shape[-1], dtype=value.dtype).transpose(1, 2)
    full, merge = heads.sink_tokens + heads.window, _can_merge(heads.query, key, value)
    block = _BLOCK if merge else max(_BLOCK, heads.window // 8)
    early = (states[:, :, :full] for states in (heads.query, key, value))
    output[:, :, :full] = scaled_dot_product_attention(*early, is_causal=True, scale=heads.scale, enable_gqa=size > 1)
    edge = max(full, n - (n - full) % block)
    for start, stop, length in ((full, edge, block), (edge, n, n - edge)):
        if start < stop:
            fill = _fill_merged if merge and heads.window > length else _fill_masked
            fill(output, heads, _Blocks(start, stop, length, size), key, value)
    _shorten(heads, heads.window - 1)
    return output


class _Blocks(NamedTuple):
    """The queries from `start` to `stop`, all of which are past the sinks and a window, in blocks of `length`. Blocks
    are folded into the batch, and the `size` query heads that read one KV head stand below each other, so that one mask
    tells for all what each query of a block sees."""

    start: int
    stop: int
    length: int
    size: int

    def queries(self, states: Tensor) -> Tensor:
        """These of all queries, (batch, head, query, width), as (batch, block, kv_head, head of it, query of the block,
        width)."""
        states = states[:, :, self.start : self.stop].unflatten(2, (-1, self.length))
        return states.unflatten(1, (-1, self.size)).permute(0, 3, 1, 2, 4, 5)

    def keys(self, states: Tensor, sinks: int, *stretches: tuple[int, int]) -> Tensor:
        """For each block the first `sinks` keys and then, of each of the `stretches` (behind, span), `span` keys that
        begin so far `behind` the block's first query: (batch x block, kv_head, key, width). One stretch alone is read
        where it lies."""
        parts = [states[:, :, None, :sinks].expand(-1, -1, (self.stop - self.start) // self.length, -1, -1)]
        for behind, span in stretches:
            last = self.stop - self.length - behind + span
            found = states[:, :, self.start - behind : last].unfold(2, span, self.length).transpose(3, 4)
            parts.append(found)
        together = found if sinks == 0 and len(stretches) == 1 else torch.cat(parts, 3)
        return together.transpose(1, 2).flatten(0, 1)


def _fill_masked(output: Tensor, heads: ReplacedHeads, blocks: _Blocks, key: Tensor, value: Tensor) -> None:
    """Write these queries' outputs, (batch, head, query, width), from one call: for each block the sinks and the
    stretch of keys that its windows span."""
    sinks, window, span = heads.sink_tokens, heads.window, heads.window - 1 + blocks.length
    query, filled = blocks.queries(heads.query), blocks.queries(output)
    near = torch.ones(blocks.length, span, dtype=torch.bool, device=query.device).triu().tril(window - 1)
    seen = torch.nn.functional.pad(near, (sinks, 0), value=True).repeat(blocks.size, 1)
    keys = (blocks.keys(states, sinks, (window - 1, span)) for states in (key, value))
    query = query.flatten(3, 4).flatten(0, 1)
    found = scaled_dot_product_attention(query, *keys, attn_mask=seen, scale=heads.scale)
    filled.copy_(found.view(filled.shape))


def _fill_merged(output: Tensor, heads: ReplacedHeads, blocks: _Blocks, key: Tensor, value: Tensor) -> None:
    """As `_fill_masked`, from two calls: one for the keys that all queries of a block see, which needs no mask and
    copies nothing, and one for the sinks and the edges of the windows."""
    sinks, window, length = heads.sink_tokens, heads.window, blocks.length
    query, filled = blocks.queries(heads.query), blocks.queries(output)
    query = query.flatten(3, 4).flatten(0, 1)
    between = (blocks.keys(states, 0, (window - length, window - length)) for states in (key, value))
    found, weight = _with_log_sum_exp(query, *between, None, heads.scale)
    oldest = torch.ones(length, length, dtype=torch.bool, device=query.device).triu()
    seen = torch.nn.functional.pad(torch.cat([oldest[:, :-1], oldest.mT], 1), (sinks, 0), value=True)
    edges = (blocks.keys(states, sinks, (window - 1, length - 1), (0, length)) for states in (key, value))
    at_edges, weight_at_edges = _with_log_sum_exp(query, *edges, seen.repeat(blocks.size, 1), heads.scale)
    share = (weight_at_edges - weight).sigmoid().to(found.dtype).view(*filled.shape[:-1], 1)
    torch.lerp(found.view(filled.shape), at_edges.view(filled.shape), share, out=filled)


def _can_merge(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether two parts of an attention can be merged by their log-sum-exps: PyTorch gives these from its kernels
    alone, and lets no gradient through them."""
    recorded = torch.is_grad_enabled() and any(states.requires_grad for states in (query, key, value))
    alike = query.dtype == key.dtype == value.dtype and query.shape[-1] == value.shape[-1]
    return query.device.type == "cpu" and alike and not recorded


def _with_log_sum_exp(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention output, and the log-sum-exp of its scores, (batch, head, query) float32, by the kernel that SDPA runs
    on a CPU."""
    mask = None
    if seen is not None:
        mask = torch.zeros_like(seen, dtype=query.dtype).masked_fill_(~seen, -torch.inf)[None, None]
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, False, attn_mask=mask, scale=scale
    )


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
        near = near & tokens.is_later[:, None, recent]  # (batch, query, recent)
        far = (tokens.sink[:, None] <= position) & tokens.there[:, None]  # (batch, query, sink)
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
        _shorten(heads, heads.window - 1 + tokens.padding, (sink_key, sink_value))
    return torch.cat(outputs, 2)


def _last_query(heads: ReplacedHeads) -> Tensor:
    """The query of the last token, without padding: it sees the sinks and the window, whatever is stored between."""
    key, value = heads.key, heads.value
    if key.shape[2] > heads.sink_tokens + heads.window:
        key, value = (
            torch.cat([states[:, :, : heads.sink_tokens], states[:, :, -heads.window :]], 2) for states in (key, value)
        )
    index = heads.to_kv.unique if heads.to_kv.group_size else heads.to_kv.index
    output = scaled_dot_product_attention(
        heads.query,
        select_heads(key, index),
        select_heads(value, index),
        scale=heads.scale,
        enable_gqa=heads.to_kv.group_size is not None,
    )
    _shorten(heads, heads.window - 1)
    return output


class _Tokens(NamedTuple):
    """`rank` (batch, key): how many tokens of its sequence come before it. `is_later` (batch, key): whether it is no
    padding and no sink; a sink token that is also recent counts once, as a sink. `sink` (batch, sink): places of the
    first tokens, those that are `there` already. `padding`: how much of it a sequence has at most."""

    rank: Tensor
    is_later: Tensor
    sink: Tensor
    there: Tensor
    padding: int

    @classmethod
    def of(cls, heads: ReplacedHeads, keys: int) -> "_Tokens":
        batch, device = heads.query.shape[0], heads.query.device
        wanted = torch.arange(heads.sink_tokens, device=device).expand(batch, -1)
        if heads.mask is None:
            rank = torch.arange(keys, device=device).expand(batch, -1)
            return cls(rank, rank >= heads.sink_tokens, wanted.clamp(max=keys - 1), wanted < keys, 0)
        real = heads.real_keys()
        rank = real.cumsum(-1) - 1
        reached = rank[:, None] >= wanted[:, :, None]  # (batch, sink, key)
        is_later, padding = real & (rank >= heads.sink_tokens), int((~real).sum(-1).max())
        return cls(rank, is_later, reached.int().argmax(-1), reached.any(-1), padding)


def _sinks(heads: ReplacedHeads, tokens: _Tokens) -> tuple[Tensor, Tensor]:
    """Keys and values of the first tokens, (batch, kv_head, sink, width)."""
    if heads.start:  # They were moved to the front when what lies between was forgotten.
        return heads.key[:, :, : heads.sink_tokens], heads.value[:, :, : heads.sink_tokens]
    index = tokens.sink[:, None, :, None].expand(-1, heads.key.shape[1], -1, 1)
    return tuple(states.gather(2, index.expand(-1, -1, -1, states.shape[-1])) for states in (heads.key, heads.value))


def _shorten(heads: ReplacedHeads, recent: int, sinks: tuple[Tensor, Tensor] | None = None) -> None:
    """Forget what no later query reads: all but the first tokens, which every sequence has, and the `recent` last."""
    if heads.cached is not None:
        heads.cached.forget(heads.sink_tokens, recent, sinks)


def _work(n: int, width: int, sink_tokens: int, window: int) -> float:
    full = sink_tokens + window
    keys = n * (n + 1) / 2 if n <= full else full * (full + 1) / 2 + (n - full) * full
    return 2 * width * keys


def _reads(n: int, sink_tokens: int, window: int) -> float:
    return min(1.0, (sink_tokens + window) / n)


SINK_WINDOW = Strategy(from_heads, work=_work, reads=_reads, forgets_tokens=True)
