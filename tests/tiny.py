"""Tiny random models of many architectures, for comparing captures with eager attention."""

from functools import partial

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel

_SHAPE = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEAD8 = {"head_dim": 8}
# Every expert takes part: which ones are chosen would turn on a single rounding.
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 4, "moe_intermediate_size": 16}

# Model type to configuration beyond the shared shape. Sliding windows are short enough to cut the test prompts.
ARCHITECTURES: dict[str, dict] = {
    "llama": {},
    "mistral": {"sliding_window": 7, **_HEAD8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    "qwen3": _HEAD8,
    "gemma2": {"sliding_window": 7, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8, **_HEAD8},
    "gemma3_text": {"sliding_window": 7, "query_pre_attn_scalar": 8, **_HEAD8},
    "gpt_oss": {"sliding_window": 7, **_HEAD8, **_EXPERTS},
    "phi": {},
    "phi3": {},
    "olmo2": {},
    "gpt_neox": {},
    "gpt2": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
    "granite": {},
    "cohere": {},
    "stablelm": {},
    "starcoder2": {"sliding_window": 7},
    "mixtral": {**_EXPERTS},
    "glm4": _HEAD8,
    "qwen3_moe": {**_HEAD8, **_EXPERTS},
    "lfm2": {"layer_types": ["conv", "full_attention", "full_attention"]},
    "qwen3_5_text": {
        "layer_types": ["linear_attention", "full_attention", "full_attention"],
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        **_HEAD8,
    },
}

# Architectures that compute attention by themselves and are watched through their eager weights.
SELF_ATTENDING: dict[str, dict] = {
    "falcon": {"new_decoder_architecture": False, "multi_query": True, "alibi": False},
    "bloom": {},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "window_size": 7},
    "openai-gpt": {},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 1024},
}
ALL = ARCHITECTURES | SELF_ATTENDING


def tiny_model(model_type: str, seed: int = 0, **overrides: object) -> PreTrainedModel:
    """A random model whose attention is far from uniform: default initialisation would make every map the null's."""
    shape = _SHAPE | ALL.get(model_type, {}) | overrides
    config = AutoConfig.for_model(model_type, **shape)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.2)
            elif "sinks" in name:
                parameter.normal_(0, 1.0)
    return model.eval()


def planted_config(**overrides: int) -> LlamaConfig:
    """Shape of a small Llama that sinks can be planted in: 4 layers of 8 heads, BOS is token 7."""
    shape = {
        "vocab_size": 50,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "bos_token_id": 7,
    }
    return LlamaConfig(**shape | overrides)


def prompt_ids(n: int, seed: int = 0, vocabulary: int = 99) -> torch.Tensor:
    """Token ids (1, n) without special tokens."""
    return torch.randint(3, vocabulary, (1, n), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def eager_maps(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """What Transformers itself says, in the model's dtype: (layer, batch, head, query, key) of layers that attend."""
    before = model.config._attn_implementation
    exchangeable = model._can_set_attn_implementation()
    change = model.set_attn_implementation if exchangeable else partial(setattr, model.config, "_attn_implementation")
    change("eager")
    try:
        maps = model(input_ids, output_attentions=True, use_cache=False).attentions
    finally:
        change(before)
    return torch.stack([m for m in maps if m is not None])


def key_classes(maps: torch.Tensor) -> torch.Tensor:
    """The masses that captures keep of maps (..., query, key): on the first four keys, the own, the one before it."""
    n = maps.shape[-1]
    first = torch.nn.functional.pad(maps, (0, max(0, 4 - n)))[..., :4]
    own, before = maps.diagonal(dim1=-2, dim2=-1), maps.diagonal(-1, dim1=-2, dim2=-1)
    return torch.cat([first, own[..., None], torch.nn.functional.pad(before, (1, 0))[..., None]], -1)
