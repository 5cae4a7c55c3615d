"""Llama models with sinks planted in chosen heads: ground truth of any size, for tests and rehearsals.

One residual dimension is constant in every token's embedding, another only in BOS's, and nothing ever writes to
either. Keys read BOS's into the slowest dimension of the rotary embedding, which hardly turns with distance; queries
of the chosen heads read the constant one there, so they always attend to BOS, as strongly as planted.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.initialization import no_init_weights

from sinkstudy.errors import StudyError
from sinkstudy.models.sharded import write_shards

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
    with no_init_weights():  # Every weight comes from the parts, so none has to be drawn here.
        model = LlamaForCausalLM(config).eval()
    for part in _planted(config, strength, n_tokens, seed, output_scale):
        model.load_state_dict(part, strict=False)
    return model


def save_planted(
    folder: Path, config: LlamaConfig, strength: np.ndarray, n_tokens: int, dtype: torch.dtype, shard_bytes: int
) -> None:
    """Write such a model as a checkpoint in shards of about `shard_bytes`, without ever holding more of it."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = _planted(config, strength, n_tokens)
    write_shards(folder, ({name: weight.to(dtype) for name, weight in part.items()} for part in parts), shard_bytes)
    config.architectures, config.dtype = ["LlamaForCausalLM"], dtype
    config.save_pretrained(folder)


def _planted(
    config: LlamaConfig, strength: np.ndarray, n_tokens: int, seed: int = 0, output_scale: float = 0.05
) -> Iterator[dict[str, Tensor]]:
    """The weights of a planted model by name, float32: the embedding, then a layer at a time, then the rest."""
    shape = (config.num_hidden_layers, config.num_attention_heads)
    if strength.shape != shape or not ((strength >= 0) & (strength < 1)).all():
        raise StudyError(f"planted strengths must be below 1 and of shape {shape}, not {strength.shape}.")
    generator = torch.Generator().manual_seed(seed)
    hidden, width, inner = config.hidden_size, config.head_dim, config.intermediate_size
    queries, keys = (width * n for n in (config.num_attention_heads, config.num_key_value_heads))
    constant, bos = hidden - 2, hidden - 1  # the two residual dimensions
    slow = width // 2 - 1  # the first of the pair that the rotary embedding turns slowest
    # A query that reads the constant dimension with weight 1 has this score against BOS's key. RMSNorm divides by the
    # root mean square of the stream: sqrt(2) for tokens with a random part of norm sqrt(hidden) and one dimension of
    # sqrt(hidden), sqrt(3) for BOS, which has two.
    unit = math.sqrt(hidden / 2) * math.sqrt(hidden / 3) / math.sqrt(width)

    def drawn(outputs: int, inputs: int, scale: float = 1.0) -> Tensor:
        return torch.empty(outputs, inputs).normal_(0, scale * inputs**-0.5, generator=generator)

    def writing(inputs: int) -> Tensor:
        weight = drawn(hidden, inputs, output_scale)
        weight[[constant, bos]] = 0.0
        return weight

    embedding = drawn(config.vocab_size, hidden)
    embedding[:, [constant, bos]] = 0.0
    embedding *= math.sqrt(hidden) / embedding.norm(dim=1, keepdim=True)
    embedding[:, constant] = math.sqrt(hidden)
    embedding[config.bos_token_id, bos] = math.sqrt(hidden)
    yield {"model.embed_tokens.weight": embedding}
    del embedding
    for layer in range(config.num_hidden_layers):
        query, key = drawn(queries, hidden, _NOISE), drawn(keys, hidden, _NOISE)
        of_heads = query.view(-1, width, hidden), key.view(-1, width, hidden)
        for pair in (slow, slow + width // 2):
            for weight in of_heads:
                weight[:, pair] = 0.0
        of_heads[1][:, slow, bos] = 1.0
        gaps = torch.tensor([_gap(s, n_tokens) for s in strength[layer]])
        of_heads[0][:, slow, constant] = gaps / unit
        linear = {"self_attn.q_proj": query, "self_attn.k_proj": key, "self_attn.v_proj": drawn(keys, hidden)}
        linear |= {"self_attn.o_proj": writing(queries), "mlp.gate_proj": drawn(inner, hidden)}
        linear |= {"mlp.up_proj": drawn(inner, hidden), "mlp.down_proj": writing(inner)}
        norms = {name: torch.ones(hidden) for name in ("input_layernorm", "post_attention_layernorm")}
        yield {f"model.layers.{layer}.{name}.weight": weight for name, weight in (linear | norms).items()}
    head = {} if config.tie_word_embeddings else {"lm_head.weight": drawn(config.vocab_size, hidden)}
    yield head | {"model.norm.weight": torch.ones(hidden)}


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
