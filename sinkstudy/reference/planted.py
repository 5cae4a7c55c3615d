"""Llama models with sinks planted in chosen heads: ground truth of any size, for tests and rehearsals.

One residual dimension is constant in every token's embedding, another only in BOS's, and nothing ever writes to
either. Keys read BOS's into the slowest dimension of the rotary embedding, which hardly turns with distance; queries
of the chosen heads read the constant one there, so they always attend to BOS, as strongly as planted.
"""

import math

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from sinkstudy.errors import StudyError

_NOISE = 0.3  # standard deviation of every other query and key component; other scores are near zero


def plant_sinks(
    config: LlamaConfig, strength: np.ndarray, n_tokens: int, seed: int = 0, output_scale: float = 0.05
) -> LlamaForCausalLM:
    """A random Llama, float32, whose head (layer, head) has about the sink score `strength` at `n_tokens` tokens.

    `strength` (layer, head): a sink score between the null score and 1, or 0 for a head left alone. Prompts must
    begin with BOS (`config.bos_token_id`) and hold it nowhere else. `output_scale`: how much attention and MLP
    outputs change the residual stream, so how much a head's values matter.

    Raises StudyError when `strength` does not have the model's shape or lies at or above 1.
    """
    shape = (config.num_hidden_layers, config.num_attention_heads)
    if strength.shape != shape or not ((strength >= 0) & (strength < 1)).all():
        raise StudyError(f"planted strengths must be below 1 and of shape {shape}, not {strength.shape}.")
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval()
    hidden, width = config.hidden_size, config.head_dim
    constant, bos = hidden - 2, hidden - 1  # the two residual dimensions
    slow = width // 2 - 1  # the first of the pair that the rotary embedding turns slowest
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight.normal_()
        embedding[:, [constant, bos]] = 0.0
        embedding *= math.sqrt(hidden) / embedding.norm(dim=1, keepdim=True)
        embedding[:, constant] = math.sqrt(hidden)
        embedding[config.bos_token_id, bos] = math.sqrt(hidden)
        if not config.tie_word_embeddings:
            model.lm_head.weight.normal_(0, hidden**-0.5)
        for layer, decoder in enumerate(model.model.layers):
            attention, mlp = decoder.self_attn, decoder.mlp
            for linear in (attention.q_proj, attention.k_proj):
                linear.weight.normal_(0, _NOISE * hidden**-0.5)
            for linear in (attention.v_proj, mlp.gate_proj, mlp.up_proj):
                linear.weight.normal_(0, hidden**-0.5)
            for linear in (attention.o_proj, mlp.down_proj):
                linear.weight.normal_(0, output_scale * linear.in_features**-0.5)
                linear.weight[[constant, bos]] = 0.0
            query = attention.q_proj.weight.view(-1, width, hidden)
            key = attention.k_proj.weight.view(-1, width, hidden)
            for pair in (slow, slow + width // 2):
                query[:, pair] = key[:, pair] = 0.0
            key[:, slow, bos] = 1.0
            gaps = torch.tensor([_gap(s, n_tokens) for s in strength[layer]])
            query[:, slow, constant] = gaps / _unit_score(hidden, width)
    return model


def _unit_score(hidden: int, width: int) -> float:
    """Attention score of a query reading the constant dimension with weight 1 against BOS's key.

    RMSNorm divides by the root mean square of the stream: sqrt(2) for tokens with a random part of norm
    sqrt(hidden) and one dimension of sqrt(hidden), sqrt(3) for BOS, which has two.
    """
    return math.sqrt(hidden / 2) * math.sqrt(hidden / 3) / math.sqrt(width)


def _gap(score: float, n: int) -> float:
    """Score of the first key over all others, which share a score of zero, that gives this sink score at `n`."""
    if score == 0:
        return 0.0
    others = np.arange(n)
    return brentq(lambda gap: np.mean(1 / (1 + others * math.exp(-gap))) - score, -20, 40)


def planted_ids(config: LlamaConfig, n: int, seed: int = 0) -> Tensor:
    """A prompt for a planted model, (1, n) int64: BOS, then random other tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(config.vocab_size - 1, (1, n), generator=generator)
    ids += ids >= config.bos_token_id  # skips BOS
    ids[0, 0] = config.bos_token_id
    return ids
