"""The measured mass on the first token, the rest spread evenly over the other tokens: linear in their number.

A head whose first key scores higher than all others, which score alike, attends to the first token with mass
1 / (1 + r i) at the query i places after it, and to each of those i others with r times that. `rest_weight` is r: 0 is
a perfect sink, 1 uniform attention. The output is (v_0 + r (v_1 + ... + v_i)) / (1 + r i).
"""

import torch
from torch import Tensor

from sinkstudy.attention.heads import HeadToKV
from sinkstudy.attention.strategies.contract import HiddenStates, ReplacedHeads, Strategy

_BLOCK = 64  # tokens whose running sum is one small matrix product
_SAMPLES = 16  # queries whose attention is computed to measure a head of which the plan gives no weight


def from_heads(heads: ReplacedHeads) -> Tensor:
    queries = heads.query.shape[2]
    value = heads.value.transpose(1, 2)[:, :, heads.to_kv.unique].float()  # (batch, key, kv_head, width)
    real = heads.real_keys()  # (batch, key)
    if heads.mask is not None:
        value = value * real[:, :, None, None]
    total = running_sum(value[:, -queries:])
    if value.shape[1] > queries:
        total += value[:, :-queries].sum(1, keepdim=True)
    rows = torch.arange(real.shape[0], device=real.device)
    first = value[rows, heads.first_token()][:, None]  # (batch, 1, kv_head, width)
    count = real.cumsum(-1)[:, -queries:].clamp(min=1)  # (batch, query)
    weight = heads.rest_weight
    if weight is None:
        if "rest_weight" not in heads.memory:
            heads.memory["rest_weight"] = measured_rest_weight(heads)
        weight = heads.memory["rest_weight"]
    outputs = mixture(first, total, count, weight, heads.to_kv)
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
    outputs = mixture(first, total, count.clamp(min=1), tokens.rest_weight, tokens.to_kv)
    return tokens.output_of(outputs.to(tokens.hidden.dtype))


def mixture(first: Tensor, total: Tensor, count: Tensor, weight: Tensor, to_kv: HeadToKV) -> Tensor:
    """Outputs (batch, query, head, width): between the first value and the mean of all `count` (batch, query) values so
    far, whose sum is `total` (batch, query, kv_head, width), changed in place. `weight` (batch or 1, head) is r.

    (v_0 + r (v_1 + ... + v_i)) / (1 + r i) = v_0 + r (i + 1) / (1 + r i) (mean - v_0).
    """
    mean = total.div_(count[:, :, None, None])
    count, weight = count[:, :, None], weight[:, None]
    share = (weight * count / (1 + weight * (count - 1)))[..., None]  # (batch, query, head, 1)
    if to_kv.group_size is None:
        return torch.lerp(first[:, :, to_kv.inverse], mean[:, :, to_kv.inverse], share)
    # Heads that read one KV head side by side: its mean is read, not copied.
    share = share.unflatten(2, (-1, to_kv.group_size))
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
    # Sums in half precision would lose the latest tokens.
    with torch.autocast(x.device.type, enabled=False):
        sums = (triangle @ blocks).unflatten(-1, x.shape[2:])
    sums[:, 1:] += sums[:, :-1, -1:].cumsum(1)
    return sums.flatten(1, 2)[:, :n]


def measured_rest_weight(heads: ReplacedHeads) -> Tensor:
    """r (batch, head) from the attention of a few queries, evenly spread over each sequence: sum of 1 - m over sum of
    m i, m the mass on the first token."""
    queries = heads.query.shape[2]
    real = heads.real_keys()  # (batch, key)
    count = real[:, -queries:].sum(-1, keepdim=True)  # real queries of each sequence, (batch, 1)
    begin = real[:, -queries:].int().argmax(-1, keepdim=True)
    sampled = torch.arange(_SAMPLES, device=real.device)
    place = begin + sampled * (count - 1).clamp(min=0) // (count.clamp(2, _SAMPLES) - 1)  # (batch, sampled query)
    # Sequences with fewer queries than samples get places beyond their end; `used` below leaves these out.
    place = place.clamp(max=queries - 1)
    rows = torch.arange(len(place), device=real.device)[:, None]
    query = heads.query.transpose(1, 2)[rows, place].transpose(1, 2).float()  # (batch, head, sampled query, width)
    with torch.autocast(query.device.type, enabled=False):
        scores = query @ heads.key[:, heads.to_kv.index].float().transpose(-1, -2) * heads.scale
    keys = torch.arange(real.shape[1], device=real.device)
    seen = real[:, None] & (keys <= place[..., None] + real.shape[1] - queries)  # (batch, sampled query, key)
    weights = torch.softmax(scores.masked_fill(~seen[:, None], float("-inf")), -1).nan_to_num()
    first = heads.first_token()[:, None, None, None].expand(*weights.shape[:3], 1)
    mass = weights.gather(-1, first)[..., 0]  # (batch, head, sampled query)
    others = seen.sum(-1) - 1  # (batch, sampled query)
    used = ((sampled < count) & (others > 0))[:, None]
    rest, firsts = ((1 - mass) * used).sum(-1), (mass * others[:, None] * used).sum(-1)
    return torch.where(firsts > 0, rest / firsts, torch.ones_like(rest))


FIRST_VALUE_MEAN = Strategy(
    from_heads,
    work=lambda n, width, *_: 2 * n * width,
    reads=lambda *_: 0.5,
    from_hidden=from_hidden,
    every_value=True,
    needs_rest_weight=True,
)
