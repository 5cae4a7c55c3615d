"""Plans computed slowly and readably: eager attention whose replaced heads are rewritten query by query."""

import torch
from transformers import AttentionInterface


@torch.no_grad()
def readable_logits(model, ids, plan):
    """Logits (1, query, vocabulary) of one prompt without padding, (1, query), under `plan`."""
    first_layer_maps = []

    def attention(module, query, key, value, attention_mask, scaling=None, sliding_window=None, **_):
        output = torch.empty_like(query)
        share = query.shape[1] // key.shape[1]
        maps = [own_map(query[0, h], key[0, h // share], scaling, sliding_window) for h in range(query.shape[1])]
        if module.layer_idx == 0:
            first_layer_maps[:] = maps
        for head, attended in enumerate(maps):
            values = value[0, head // share]
            output[0, head] = attended @ values
            if head in replaced_heads(plan, module.layer_idx, first_layer_maps):
                output[0, head] = replacement(plan, module.layer_idx, head, attended, values, first_layer_maps[head])
        return output.transpose(1, 2).contiguous(), None

    AttentionInterface.register("readable", attention)
    before = model.config._attn_implementation
    model.set_attn_implementation("readable")
    try:
        return model(ids).logits
    finally:
        model.set_attn_implementation(before)


def own_map(query, key, scaling, window):
    n = query.shape[0]
    hidden = torch.tensor([[j > i or (window is not None and j <= i - window) for j in range(n)] for i in range(n)])
    return torch.softmax((query @ key.T * scaling).masked_fill(hidden, float("-inf")), -1)


def replaced_heads(plan, layer, first_layer_maps):
    if plan.first_layer_threshold is None:
        return plan.heads.get(layer, ())
    if layer == 0:
        return ()
    return [h for h, m in enumerate(first_layer_maps) if m[:, 0].mean() >= plan.first_layer_threshold]


def replacement(plan, layer, head, attended, values, first_layer_map):
    """Outputs (query, width) of a replaced head, from its own attention map and values."""
    n = len(values)
    if plan.strategy == "first_value":
        return values[:1].expand(n, -1)
    if plan.strategy == "reuse":
        return (first_layer_map if layer > 0 else attended) @ values
    rows = []
    if plan.strategy == "first_value_mean":
        r = measured(attended) if plan.rest_weight is None else plan.rest_weight[layer][head]
        for i in range(n):
            weights = values.new_tensor([1.0] + [r] * i)
            rows.append(weights / weights.sum() @ values[: i + 1])
    if plan.strategy == "sink_window":
        for i in range(n):
            keys = [j for j in range(i + 1) if j < plan.sink_tokens or j > i - plan.window]
            weights = attended[i, keys]
            rows.append(weights / weights.sum() @ values[keys])
    return torch.stack(rows)


def measured(attended):
    """Weight of each other token relative to the first's, over 16 queries evenly spread over the prompt."""
    n = len(attended)
    sample = torch.linspace(0, n - 1, min(16, n)).long().tolist()
    rest = sum(1 - attended[i, 0].item() for i in sample if i > 0)
    first = sum(i * attended[i, 0].item() for i in sample)
    return rest / first if first else 1.0
