"""Plans computed slowly and readably: eager attention whose replaced heads are rewritten query by query. Likewise, what
each head alone adds to its layer."""

import torch
from transformers import AttentionInterface
from transformers.pytorch_utils import Conv1D


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
        window = (plan.windows or {}).get(layer, {}).get(head, plan.window)
        for i in range(n):
            keys = [j for j in range(i + 1) if j < plan.sink_tokens or j > i - window]
            weights = attended[i, keys]
            rows.append(weights / weights.sum() @ values[keys])
    return torch.stack(rows)


def measured(attended):
    """Weight of each other token relative to the first's, over 16 queries evenly spread over the prompt."""
    n = len(attended)
    m = min(16, n)
    sample = [j * (n - 1) // max(1, m - 1) for j in range(m)]
    rest = sum(1 - attended[i, 0].item() for i in sample if i > 0)
    first = sum(i * attended[i, 0].item() for i in sample)
    return rest / first if first else 1.0


@torch.no_grad()
def readable_norms(model, ids):
    """Norm of what each head alone writes, over that of its layer's input: (layer, batch, head, query), eagerly."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        decoders = [module for module in model.modules() if attention_of(module) is not None]
        return torch.stack([norms_of_layer(model, ids, decoder) for decoder in decoders])
    finally:
        model.set_attn_implementation(before)


def attention_of(decoder):
    children = () if isinstance(decoder, torch.nn.ModuleList) else decoder.children()
    attention = [child for child in children if "Attention" in type(child).__name__ and hasattr(child, "layer_idx")]
    return attention[0] if attention else None


def norms_of_layer(model, ids, decoder):
    attention = attention_of(decoder)
    projection = [child for child in attention.children() if isinstance(child, torch.nn.Linear | Conv1D)][-1]
    inputs, streams = [], []
    handles = [
        projection.register_forward_pre_hook(lambda _, args: inputs.append(args[0])),
        decoder.register_forward_pre_hook(lambda _, args: streams.append(args[0])),
    ]
    model(ids)
    for handle in handles:
        handle.remove()
    heads, bias = model.config.num_attention_heads, projection(torch.zeros_like(inputs[0]))
    width, norms = inputs[0].shape[-1] // heads, []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        alone = torch.zeros_like(inputs[0])
        alone[..., own] = inputs[0][..., own]
        norms.append((projection(alone) - bias).norm(dim=-1) / streams[0].norm(dim=-1))
    return torch.stack(norms, 1)
