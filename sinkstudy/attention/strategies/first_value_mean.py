"""The measured mass on the first token, the rest spread evenly over the other tokens: linear in their number.

A head whose first key scores higher than all others, which score alike, attends to the first token with mass
1 / (1 + r i) at the query i places after it, and to each of those i others with r times that. `rest_weight` is r: 0 is
a perfect sink, 1 uniform attention. The output is (v_0 + r (v_1 + ... + v_i)) / (1 + r i).
"""

import torch
from torch import Tensor

from sinkstudy.attention.strategies.contract import HiddenStates, ReplacedHeads, Strategy

_BLOCK = 64  # tokens whose running sum is one small matrix product
_SAMPLES = 16  # queries whose attention is computed to measure a head of which the plan gives no weight


def from_heads(heads: ReplacedHeads) -> Tensor:
    value, queries = heads.value.float(), heads.query.shape[2]
    real = real_keys(heads)  # (batch, key)
    if heads.mask is not None:
        value = value * real[:, None, :, None]
    total = running_sum(value[:, :, -queries:])  # (batch, kv_head, query, width)
    if value.shape[2] > queries:
        total += value[:, :, :-queries].sum(2, keepdim=True)
    rows = torch.arange(real.shape[0], device=real.device)
    first = heads.value[rows, :, heads.first].float()[:, :, None]  # (batch, kv_head, 1, width)
    others = real.cumsum(-1)[:, -queries:].sub(1).clamp(min=0)[:, None]  # (batch, 1, query)
    weight = heads.rest_weight
    if weight is None:
        if "rest_weight" not in heads.memory:
            heads.memory["rest_weight"] = measured_rest_weight(heads)
        weight = heads.memory["rest_weight"]
    outputs = mixture(first[:, heads.kv_head], total[:, heads.kv_head], others, weight[:, :, None])
    return outputs.to(heads.value.dtype)


def from_hidden(tokens: HiddenStates) -> Tensor:
    """Keeps the first value and the sum of all so far, per KV head, and how many they are."""
    value = tokens.value_of(tokens.hidden).float()
    real = tokens.real
    if real is not None:
        value = value * real[:, :, None, None]
    total = running_sum(value.transpose(1, 2)).transpose(1, 2)  # (batch, query, kv_head, width)
    count = (value.new_ones(1, value.shape[1]) if real is None else real.int()).cumsum(-1)  # (batch, query)
    if tokens.state:
        total, count = total + tokens.state["total"][:, None], count + tokens.state["count"]
    else:
        rows = torch.arange(value.shape[0], device=value.device)
        first = value[:, 0] if real is None else value[rows, real.int().argmax(-1)]
        tokens.state["first"] = first.clone()
    tokens.state["total"] = total[:, -1].clone()
    tokens.state["count"] = count[:, -1:].expand(value.shape[0], 1).clone()
    first = tokens.state["first"][:, None, tokens.kv_head]
    others = count.sub(1).clamp(min=0)[:, :, None]
    outputs = mixture(first, total[:, :, tokens.kv_head], others, tokens.rest_weight[:, None])
    return tokens.output_of(outputs.to(tokens.hidden.dtype))


def mixture(first: Tensor, total: Tensor, others: Tensor, weight: Tensor) -> Tensor:
    """(v_0 + r (v_1 + ... + v_i)) / (1 + r i) for `total` v_0 + ... + v_i, changed in place; `others` i, `weight` r
    lack the last axis of the values, and all broadcast."""
    scale = 1 / (1 + weight * others)
    return total.mul_((weight * scale)[..., None]).addcmul_(first, ((1 - weight) * scale)[..., None])


def running_sum(x: Tensor) -> Tensor:
    """Cumulative sum along the last axis but one of (..., token, width), as products with a triangle of ones: PyTorch's
    own cumsum along that axis is many times slower on the CPU."""
    n, width = x.shape[-2:]
    if n == 1:
        return x.clone()
    block = min(_BLOCK, n)
    short = -n % block
    x = torch.nn.functional.pad(x, (0, 0, 0, short)) if short else x
    x = x.reshape(*x.shape[:-2], -1, block, width)  # (..., block, token, width)
    sums = torch.ones(block, block, dtype=x.dtype, device=x.device).tril() @ x
    sums[..., 1:, :, :] += sums[..., :-1, -1:, :].cumsum(-3)
    return sums.flatten(-3, -2)[..., :n, :]


def measured_rest_weight(heads: ReplacedHeads) -> Tensor:
    """r (batch, head) from the attention of a few of the last queries: sum of 1 - m over sum of m i, m the mass on the
    first token."""
    queries, keys = heads.query.shape[2], heads.key.shape[2]
    sample = torch.linspace(0, queries - 1, min(_SAMPLES, queries), device=heads.query.device).long()
    scores = heads.query[:, :, sample].float() @ heads.key[:, heads.kv_head].float().transpose(-1, -2) * heads.scale
    if heads.mask is None:
        seen = torch.arange(keys, device=sample.device) <= (sample + keys - queries)[:, None]
        seen = seen[None, None]
    else:
        seen = heads.mask[:, :, sample]
    # A padding query sees nothing, and its mass is undefined.
    weights = torch.softmax(scores.masked_fill(~seen, float("-inf")), -1).nan_to_num()
    first = heads.first[:, None, None, None].expand(*weights.shape[:3], 1)
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
    values="all",
    from_hidden=from_hidden,
    needs_rest_weight=True,
)
