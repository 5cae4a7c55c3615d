"""Attention mass per query from one attention call, without keeping the (query, key) map.

Three ways to the same numbers. `explicit` forms the whole map, for prompts whose map is stored. `fused`
runs the fused kernel and recovers single columns from its log-sum-exp: A[i, j] = exp(q_i . k_j * scale - lse_i).
Its output is bit for bit what plain SDPA gives.
`blockwise` does what `explicit` does a block of queries at a time, for features no fused kernel returns a
log-sum-exp for (masks, soft-capping, learned sinks, values of another width).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sinkstudy.capture.norms import NormHooks, Norms

KEY_CLASSES = ("position_0", "position_1", "position_2", "position_3", "self", "previous")
_FIRST_KEYS = 4
_BLOCK = 256
# The scores of so many queries stay in the processor's cache while they are turned into sums.
_RECEIVED_BLOCK = 64
# Shorter prompts are computed as eager attention computes them, and by themselves agree with it to the last bit. Where
# a trained model's scores are large, rounding alone makes any other order of operations differ by up to 1e-6, neither
# being nearer the truth.
FUSE_FROM = 768


@dataclass(frozen=True)
class AttentionCall:
    """The arguments of one attention call, in the form every model of Transformers' interface passes them.

    query (batch, head, query, width), key and value (batch, kv_head, key, width). `mask` (batch or 1, head or 1,
    query, key) is boolean (True: attend) or additive; None means causal. `softcap` bounds the scores as
    softcap * tanh(score / softcap). `learned_sinks` (head,) is an extra logit per head that takes mass and gives
    no output. `counted` (batch, query): queries whose attention to earlier keys is to be summed; None: no such sums.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    mask: Tensor | None = None
    softcap: float | None = None
    learned_sinks: Tensor | None = None
    counted: Tensor | None = None


@dataclass(frozen=True)
class Masses:
    """What is kept of one layer's attention, all float32.

    `keys` (batch, head, query, key_class): the mass on the first four positions, the query's own, and the one
    before it. `row_error` (batch,): the largest |row sum - 1| seen (learned sinks counted in the sum). `row_sum`
    (batch, head, query): the mass on all keys, only where a learned sink takes the rest of each row.
    `map` (batch, head, query, key): only from `explicit`. `received` (batch, head, key): the sum over the counted
    queries that come after a key of their mass on it, or None where none are counted. `norms`: see `capture.norms`.
    """

    keys: Tensor
    row_error: Tensor
    row_sum: Tensor | None = None
    map: Tensor | None = None
    received: Tensor | None = None
    norms: Norms | None = None


@dataclass(frozen=True)
class Watch:
    """Who is told the masses of each layer, by its index, and what they are to hold besides those on `KEY_CLASSES`.

    `counted` (batch, query): as in `AttentionCall`.
    """

    on_layer: Callable[[int, Masses], None]
    norms: NormHooks | None = None
    maps: bool = False
    counted: Tensor | None = None


def can_fuse(call: AttentionCall) -> bool:
    """Whether a fused kernel with a log-sum-exp covers this call."""
    plain = call.mask is None and call.softcap is None and call.learned_sinks is None
    return plain and call.query.shape[-1] == call.value.shape[-1]


def explicit(call: AttentionCall) -> tuple[Tensor, Masses]:
    """Attention output (batch, head, query, width) and masses, with the whole map."""
    return _rows(call, keep_map=True)


def blockwise(call: AttentionCall, block: int = _BLOCK) -> tuple[Tensor, Masses]:
    """As `explicit`, without the map, in memory linear in the number of queries."""
    n = call.query.shape[-2]
    if n <= block:
        return _rows(call)
    key, value = _per_query_head(call)
    call = replace(call, key=key.contiguous(), value=value)  # Every block would copy them again.
    outputs, masses = zip(*[_rows(call, start, start + block) for start in range(0, n, block)], strict=True)
    return torch.cat(outputs, dim=-2), Masses(
        keys=torch.cat([m.keys for m in masses], dim=-2),
        row_error=torch.stack([m.row_error for m in masses]).amax(0),
        row_sum=None if call.learned_sinks is None else torch.cat([m.row_sum for m in masses], dim=-1),
        received=None if call.counted is None else torch.stack([m.received for m in masses]).sum(0),
    )


def fused(call: AttentionCall) -> tuple[Tensor, Masses]:
    """As `blockwise` for plain causal attention, at the price of the fused kernel and a few dot products."""
    output, lse = _flash_with_lse(call)
    batch, heads, n, width = call.query.shape
    groups = call.key.shape[1]
    # Query heads that share a key head side by side: (batch, kv_head, query head of it, query, width).
    query = call.query.reshape(batch, groups, heads // groups, n, width).float()
    key = call.key[:, :, None].float()
    lse = lse.reshape(query.shape[:-1])
    positions = torch.arange(n, device=lse.device)
    first_keys = key[..., :_FIRST_KEYS, :]
    seen = positions[:, None] >= positions[: first_keys.shape[-2]]  # fewer than four in the shortest prompts
    keys = torch.zeros(*lse.shape, len(KEY_CLASSES), device=lse.device)
    first = (query @ first_keys.transpose(-1, -2)).mul_(call.scale).sub_(lse[..., None]).exp_()
    keys[..., : first.shape[-1]] = first.masked_fill_(~seen, 0.0)
    keys[..., 4] = (query * key).sum(-1).mul_(call.scale).sub_(lse).exp_()
    previous = (query[..., 1:, :] * key[..., :-1, :]).sum(-1).mul_(call.scale)
    keys[..., 1:, 5] = previous.sub_(lse[..., 1:]).exp_()
    error = _sampled_row_error(query, key, lse, call.scale)
    received = None if call.counted is None else _received_by_blocks(query, key, lse, call)
    return output, Masses(keys=keys.flatten(1, 2), row_error=error, received=received)


def from_map(attention: Tensor, keep_map: bool, counted: Tensor | None = None) -> Masses:
    """Masses of attention weights (batch, head, query, key) that a model returned; `counted` as in `AttentionCall`."""
    weights = attention.float()
    return _masses(weights, weights.sum(-1), 0, keep_map, counted)


def _rows(
    call: AttentionCall, start: int = 0, stop: int | None = None, keep_map: bool = False
) -> tuple[Tensor, Masses]:
    """Attention of the queries start..stop over all keys they may see, with the softmax in float32."""
    key, value = _per_query_head(call)
    # (batch, head, block, key). In place throughout: these arrays are the largest there are. The product would copy
    # a transposed key element by element.
    scores = (call.query[..., start:stop, :] @ key.contiguous().transpose(-1, -2)).mul_(call.scale)
    if call.softcap is not None:
        scores = scores.div_(call.softcap).tanh_().mul_(call.softcap)
    n = key.shape[-2]
    if call.mask is None:
        # Adding a mask is cheaper than filling in by one.
        scores += scores.new_full(scores.shape[-2:], float("-inf")).triu_(start + 1)
    elif call.mask.dtype == torch.bool:
        scores.masked_fill_(~call.mask[..., start:stop, :n], float("-inf"))
    else:
        scores = scores + call.mask[..., start:stop, :n]
    logits = scores.float()
    if call.learned_sinks is not None:
        extra = call.learned_sinks.float().reshape(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
        logits = torch.cat([logits, extra], dim=-1)
    whole = torch.softmax(logits, dim=-1)
    probabilities = whole[..., :n]
    output = probabilities.to(value.dtype) @ value
    masses = _masses(probabilities, whole.sum(-1), start, keep_map, call.counted, causal=call.mask is None)
    return output, masses if call.learned_sinks is None else replace(masses, row_sum=probabilities.sum(-1))


def _masses(
    weights: Tensor, sums: Tensor, start: int, keep_map: bool, counted: Tensor | None, causal: bool = False
) -> Masses:
    """Masses of full rows (batch, head, query, key), of which the first is that of query `start`.

    `sums` (batch, head, query): of the rows, learned sinks among them. `causal`: no row can hold mass on later keys.
    """
    error = (sums - 1).abs().amax((1, 2))
    if not causal:
        # Mass on keys that come later counts as an error of the row, as a mask that is not causal shows itself by it.
        error = torch.maximum(error, weights.triu(start + 1).sum(-1).amax((1, 2)))
    return Masses(
        keys=_key_classes(weights, start),
        row_error=error,
        map=weights if keep_map else None,
        received=_received(weights, start, counted),
    )


def _per_query_head(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Key and value repeated to one per query head (grouped-query attention)."""
    groups = call.query.shape[1] // call.key.shape[1]
    if groups == 1:
        return call.key, call.value
    return call.key.repeat_interleave(groups, dim=1), call.value.repeat_interleave(groups, dim=1)


def _key_classes(probabilities: Tensor, start: int) -> Tensor:
    """Pick the columns of KEY_CLASSES out of full rows (batch, head, query, key); keys that do not exist have none.

    The first row is that of query `start`.
    """
    n = probabilities.shape[-1]
    keys = torch.zeros(*probabilities.shape[:-1], len(KEY_CLASSES), device=probabilities.device)
    width = min(n, _FIRST_KEYS)
    keys[..., :width] = probabilities[..., :width]
    keys[..., 4] = probabilities.diagonal(start, -2, -1)
    first = 1 if start == 0 else 0  # the first query has nothing before it
    keys[..., first:, 5] = probabilities.diagonal(start - 1, -2, -1)[..., : keys.shape[-2] - first]
    return keys


def _received(probabilities: Tensor, start: int, counted: Tensor | None) -> Tensor | None:
    """The part of `Masses.received` in full rows (batch, head, query, key), of which the first is query `start`."""
    if counted is None:
        return None
    rows = probabilities.shape[-2]
    weights = counted[:, None, None, start : start + rows].float()
    own = probabilities.diagonal(start, -2, -1) * weights[..., 0, :]
    received = (weights @ probabilities)[..., 0, :]
    received[..., start : start + rows] -= own
    return received


def _received_by_blocks(query: Tensor, key: Tensor, lse: Tensor, call: AttentionCall) -> Tensor:
    """`Masses.received` from log-sum-exps, in memory linear in the number of queries.

    `query` (batch, kv_head, query head of it, query, width), `key` (batch, kv_head, 1, key, width), `lse` as query.
    """
    received = torch.zeros_like(lse)
    weights = call.counted[:, None, None, None].float()  # (batch, 1, 1, 1, query)
    for start in range(0, lse.shape[-1], _RECEIVED_BLOCK):
        block = slice(start, start + _RECEIVED_BLOCK)
        stop = min(start + _RECEIVED_BLOCK, lse.shape[-1])
        scores = torch.einsum("bghqd,bgkd->bghqk", query[..., block, :], key[:, :, 0, :stop])
        weight = scores.mul_(call.scale).sub_(lse[..., block, None]).exp_()
        weight[..., block].tril_(-1)
        received[..., :stop] += (weights[..., block] @ weight)[..., 0, :]
    return received.flatten(1, 2)


def _flash_with_lse(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Causal fused attention: output (batch, head, query, width) and log-sum-exp (batch, head, query) float32."""
    ops, query, scale = torch.ops.aten, call.query, call.scale
    if query.device.type == "cpu":  # shares key heads among query heads by itself
        output, lse = ops._scaled_dot_product_flash_attention_for_cpu(
            query, call.key, call.value, 0.0, True, scale=scale
        )
        return output, lse.float()
    key, value = _per_query_head(call)
    if query.dtype == torch.float32:
        output, lse = ops._scaled_dot_product_efficient_attention(
            query, key, value, None, True, 0.0, True, scale=scale
        )[:2]
    else:
        output, lse = ops._scaled_dot_product_flash_attention(query, key, value, 0.0, True, scale=scale)[:2]
    return output, lse[..., : query.shape[-2]].float()  # the CUDA kernels pad the query axis


def _sampled_row_error(query: Tensor, key: Tensor, lse: Tensor, scale: float) -> Tensor:
    """Per prompt the largest |row sum - 1| over a handful of rows, from scores formed anew, (batch,).

    `query` (batch, kv_head, query head of it, query, width), `key` (batch, kv_head, 1, key, width) float32.
    """
    n = query.shape[-2]
    rows = torch.unique(torch.linspace(0, n - 1, 5, device=query.device).long())
    future = torch.arange(n, device=query.device) > rows[:, None]
    scores = torch.einsum("bghqd,bgkd->bghqk", query[..., rows, :], key[:, :, 0]) * scale
    sums = (scores.masked_fill_(future, float("-inf")) - lse[..., rows, None]).exp_().sum(-1)
    return (sums - 1).abs().amax((1, 2, 3))
