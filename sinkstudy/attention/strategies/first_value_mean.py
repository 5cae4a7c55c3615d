"""The measured mass on the first token, the rest spread evenly over the other tokens: linear in their number.

A head whose first key scores higher than all others, which score alike, attends to the first token with mass
1 / (1 + r i) at the query i places after it, and to each of those i others with r times that. `rest_weight` is r: 0 is
a perfect sink, 1 uniform attention. The output is (v_0 + r (v_1 + ... + v_i)) / (1 + r i).
"""

import torch
from torch import Tensor

from sinkstudy.attention.layout import KvReads
from sinkstudy.attention.strategies.contract import HiddenStates, ReplacedHeads, Strategy

_BLOCK = 64  # tokens whose running sum is one small matrix product
_SAMPLES = 16  # queries whose attention is computed to measure a head of which the plan gives no weight


def from_heads(heads: ReplacedHeads) -> Tensor:
    queries = heads.query.shape[2]
    value = heads.value.transpose(1, 2)[:, :, heads.reads.kv_read].float()  # (batch, key, kv_head, width)
    real = real_keys(heads)  # (batch, key)
    if heads.mask is not None:
        value = value * real[:, :, None, None]
    total = running_sum(value[:, -queries:])
    if value.shape[1] > queries:
        total += value[:, :-queries].sum(1, keepdim=True)
    rows = torch.arange(real.shape[0], device=real.device)
    first = value[rows, heads.first()][:, None]  # (batch, 1, kv_head, width)
    count = real.cumsum(-1)[:, -queries:].clamp(min=1)  # (batch, query)
    weight = heads.rest_weight
    if weight is None:
        if "rest_weight" not in heads.memory:
            heads.memory["rest_weight"] = measured_rest_weight(heads)
        weight = heads.memory["rest_weight"]
    outputs = mixture(first, total, count, weight, heads.reads)
    return outputs.to(heads.value.dtype).transpose(1, 2)


def from_hidden(tokens: HiddenStates) -> Tensor:
    """Keeps the first value and the sum of all so far, per KV head, and how many they are."""
    value = tokens.value_of(tokens.hidden).float()
    real = tokens.real
    if real is not None:
        value = value * real[:, :, None, None]
    total = running_sum(value)  # (batch, query, kv_head, width)
    count = (value.new_ones(1, value.shape[1]) if real is None else real.int()).cumsum(-1)  # (batch, query)
    if tokens.state:
        total, count = total + tokens.state["total"][:, None], count + tokens.state["count"]
    else:
        rows = torch.arange(value.shape[0], device=value.device)
        first = value[:, 0] if real is None else value[rows, real.int().argmax(-1)]
        tokens.state["first"] = first.clone()
    tokens.state["total"] = total[:, -1].clone()
    tokens.state["count"] = count[:, -1:].expand(value.shape[0], 1).clone()
    first = tokens.state["first"][:, None]
    outputs = mixture(first, total, count.clamp(min=1), tokens.rest_weight, tokens.reads)
    return tokens.output_of(outputs.to(tokens.hidden.dtype))


def mixture(first: Tensor, total: Tensor, count: Tensor, weight: Tensor, reads: KvReads) -> Tensor:
    """Outputs (batch, query, head, width): between the first value and the mean of all `count` (batch, query) values so
    far, whose sum is `total` (batch, query, kv_head, width), changed in place. `weight` (batch or 1, head) is r.

    (v_0 + r (v_1 + ... + v_i)) / (1 + r i) = v_0 + r (i + 1) / (1 + r i) (mean - v_0).
    """
    mean = total.div_(count[:, :, None, None])
    count, weight = count[:, :, None], weight[:, None]
    share = (weight * count / (1 + weight * (count - 1)))[..., None]  # (batch, query, head, 1)
    if reads.per_kv is None:
        return torch.lerp(first[:, :, reads.kv_place], mean[:, :, reads.kv_place], share)
    # Heads that read one KV head side by side: its mean is read, not copied.
    share = share.unflatten(2, (-1, reads.per_kv))
    return torch.lerp(first[:, :, :, None], mean[:, :, :, None], share).flatten(2, 3)


def running_sum(x: Tensor) -> Tensor:
    """Cumulative sum over the tokens of (batch, token, head, width), as products with a triangle of ones: PyTorch's own
    cumsum along that axis is many times slower on the CPU."""
    n, block = x.shape[1], min(_BLOCK, x.shape[1])
    if n == 1:
        return x.clone()
    short = -n % block
    blocks = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, short)) if short else x
    blocks = blocks.unflatten(1, (-1, block)).flatten(3)  # (batch, block, token, head x width)
    triangle = torch.ones(block, block, dtype=x.dtype, device=x.device).tril()
    sums = (triangle @ blocks).unflatten(-1, x.shape[2:])
    sums[:, 1:] += sums[:, :-1, -1:].cumsum(1)
    return sums.flatten(1, 2)[:, :n]


def measured_rest_weight(heads: ReplacedHeads) -> Tensor:
    """r (batch, head) from the attention of a few of the last queries: sum of 1 - m over sum of m i, m the mass on the
    first token."""
    queries, keys = heads.query.shape[2], heads.key.shape[2]
    sample = torch.linspace(0, queries - 1, min(_SAMPLES, queries), device=heads.query.device).long()
    key = heads.key[:, heads.reads.kv_head].float()
    scores = heads.query[:, :, sample].float() @ key.transpose(-1, -2) * heads.scale
    if heads.mask is None:
        seen = torch.arange(keys, device=sample.device) <= (sample + keys - queries)[:, None]
        seen = seen[None, None]
    else:
        seen = heads.mask[:, :, sample]
    # A padding query sees nothing, and its mass is undefined.
    weights = torch.softmax(scores.masked_fill(~seen, float("-inf")), -1).nan_to_num()
    first = heads.first()[:, None, None, None].expand(*weights.shape[:3], 1)
    mass = weights.gather(-1, first)[..., 0]  # (batch, head, sampled query)
    others = seen.sum(-1) - 1
    used = (others > 0).expand_as(mass)
    rest, firsts = ((1 - mass) * used).sum(-1), (mass * others * used).sum(-1)
    return torch.where(firsts > 0, rest / firsts, torch.ones_like(rest))


def real_keys(heads: ReplacedHeads) -> Tensor:
    """(batch, key) bool: keys that some query may see, so that are no padding."""
    if heads.mask is None:
        return heads.value.new_ones(heads.value.shape[0], heads.value.shape[2], dtype=torch.bool)
    return heads.mask[:, 0].any(-2).expand(heads.value.shape[0], -1)


FIRST_VALUE_MEAN = Strategy(
    from_heads,
    work=lambda n, width, *_: 2 * n * width,
    reads=lambda *_: 0.5,
    projects=("value",),
    from_hidden=from_hidden,
    needs_rest_weight=True,
)
