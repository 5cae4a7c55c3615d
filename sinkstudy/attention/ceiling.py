"""What a plan could save at best: floating-point operations of a prefill, counted from the model's own shapes."""

import torch
from transformers import PreTrainedModel

# Share of a head's attention operations (scores and weighted sum, equal in number) that a strategy does not do.
_SAVED = {"first_value": 1.0, "reuse": 0.5}


def prefill_ceiling(model: PreTrainedModel, n_tokens: int, replaced: int, strategy: str) -> float:
    """Speedup if every saved operation were saved perfectly, for `replaced` heads over a prompt of `n_tokens`.

    Counts 2 operations per multiply-add: all linear layers on every token, and causal attention's
    2 x 2 x width x n (n + 1) / 2 per head.
    """
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    per_head = 2 * width * n_tokens * (n_tokens + 1)
    heads = config.num_hidden_layers * config.num_attention_heads
    total = 2 * n_tokens * linear + heads * per_head
    return total / (total - replaced * per_head * _SAVED[strategy])
