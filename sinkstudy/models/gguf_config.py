"""The configuration a GGUF file states, complete.

Transformers takes some of a file's metadata over and leaves the rest at the defaults of its configuration classes,
without a word: head width, soft caps, RoPE scaling. Here every key of the architecture is either written into the
configuration, or checked against it, or the file is refused.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import PretrainedConfig

from sinkstudy.errors import StudyError
from sinkstudy.models.gguf_file import GGUFFile

# Each metadata key, below the architecture's name, belongs to the first of these attributes that a configuration has.
_ATTRIBUTES = {
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",),
    "feed_forward_length": ("intermediate_size", "ffn_hidden_size", "n_inner"),
    "vocab_size": ("vocab_size",),
    "use_parallel_residual": ("use_parallel_residual", "parallel_attn"),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.key_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
}
# Other code of this module reads the keys of the first set; those of the second decide nothing about the computation.
_READ_ELSEWHERE = {
    "attention.value_length",
    "attention.causal",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
}
_WITHOUT_EFFECT = {"tensor_data_layout", "rope.scaling.original_context_length", "rope.scaling.finetuned"}
# These models, by architecture and number of layers, scale queries by another width than that of their heads.
_SCALED_BY_HIDDEN = {("gemma2", 46), ("gemma3", 62)}


def complete_config(config: PretrainedConfig, file: GGUFFile) -> PretrainedConfig:
    """`config`, as Transformers reads it from `file`, with all that the file states.

    Raises StudyError naming the key that cannot be carried over.
    """
    prefix = f"{file.architecture}."
    keys = {key.removeprefix(prefix) for key in file.metadata if key.startswith(prefix)}
    for key in sorted(keys & set(_ATTRIBUTES)):
        _set(config, file, key)
    if (embedding := file.tensors.get("token_embd.weight")) is not None:
        config.vocab_size = int(embedding.shape[1])
    if hasattr(config, "query_pre_attn_scalar"):
        # llama.cpp scales queries by the width of a head; Transformers keeps a number of its own for some models.
        by_hidden = (file.architecture, config.num_hidden_layers) in _SCALED_BY_HIDDEN
        equal_share = config.hidden_size // config.num_attention_heads
        config.query_pre_attn_scalar = equal_share if by_hidden else _head_dim(config)
    _set_rope(config, file)
    for name in ("bos", "eos"):
        setattr(config, f"{name}_token_id", file.metadata.get(f"tokenizer.ggml.{name}_token_id"))
    config.pad_token_id = file.metadata.get("tokenizer.ggml.padding_token_id")
    kinds = getattr(config, "layer_types", None)
    if file.stated("attention.sliding_window") and kinds and "sliding_attention" not in kinds:
        raise _refused(file, "attention.sliding_window", "but not of which layers")
    if file.stated("attention.value_length", _head_dim(config)) != _head_dim(config):
        raise _refused(file, "attention.value_length", "other than the width of its keys")
    if not file.stated("attention.causal", True):
        raise _refused(file, "attention.causal", "which no causal language model does")
    for key in sorted(keys - set(_ATTRIBUTES) - _READ_ELSEWHERE - _WITHOUT_EFFECT):
        raise _refused(file, key, "which Transformers would drop")
    return config


def _set(config: PretrainedConfig, file: GGUFFile, key: str) -> None:
    value = _shortest(file.stated(key))
    name = next((name for name in _ATTRIBUTES[key] if hasattr(config, name)), None)
    if key == "attention.sliding_window" and not value:
        value = None
    if name is not None:
        setattr(config, name, value)
    elif key == "attention.key_length":
        if value != _head_dim(config):
            config.head_dim = value  # layers take it where it is given, and else hidden_size / heads
    elif key == "attention.head_count_kv":
        if value != config.num_attention_heads:
            raise _refused(file, key, f"but Transformers' {config.model_type} has {config.num_attention_heads}")
    elif value:
        raise _refused(file, key, f"for which Transformers' {config.model_type} has no place")


def _shortest(value: Any) -> Any:
    """A float32 of the file as the decimal number it was written from: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _head_dim(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _set_rope(config: PretrainedConfig, file: GGUFFile) -> None:
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        return
    width, rotated = _head_dim(config), file.stated("rope.dimension_count")
    scaling = _scaling(file, width)
    # Where kinds of layers differ, each has settings of its own.
    by_kind = {kind: rope for kind, rope in parameters.items() if isinstance(rope, Mapping)}
    for kind, rope in (by_kind or {"all": parameters}).items():
        sliding = kind == "sliding_attention"
        base = file.stated("rope.freq_base_swa") if sliding else file.stated("rope.freq_base")
        if base is not None:
            rope["rope_theta"] = _shortest(float(base))
        if "partial_rotary_factor" in rope and rotated is not None:
            rope["partial_rotary_factor"] = rotated / width
        elif rotated is not None and rotated != width:
            raise _refused(file, "rope.dimension_count", f"but Transformers rotates all {width} of a head")
        if scaling and not sliding:  # layers with a window see no distance that would need scaling
            rope.update(scaling)
    config.rope_parameters = parameters
    if hasattr(config, "partial_rotary_factor") and rotated is not None:
        config.partial_rotary_factor = rotated / width


def _scaling(file: GGUFFile, width: int) -> dict[str, Any] | None:
    """RoPE scaling in Transformers' words, None where there is none."""
    if any(name.startswith("rope_factors_") for name in file.tensors):
        raise _dropped(file, "its long-context RoPE factors (LongRoPE)")
    if "rope_freqs.weight" in file.tensors:
        return _llama3_scaling(file, width)
    kind, factor = file.stated("rope.scaling.type"), file.stated("rope.scaling.factor") or 1.0
    if kind in (None, "none", "linear"):
        return None if factor == 1.0 or kind == "none" else {"rope_type": "linear", "factor": _shortest(factor)}
    raise _dropped(file, f"its RoPE scaling of type {kind!r}")


def _llama3_scaling(file: GGUFFile, width: int) -> dict[str, Any] | None:
    """The settings by which Llama 3.1 and later make the factors that llama.cpp stores in their place.

    Frequencies of wavelengths beyond original / low are divided by `factor`, those below original / high are kept,
    and those between are blended (Transformers' rope_type `llama3`). The settings are those of all published models;
    a file whose factors they do not give to seven digits is refused.
    """
    # llama.cpp divides the RoPE frequencies by these, (head_dim / 2,).
    factors = np.array(file.tensors["rope_freqs.weight"].data, dtype=np.float32)
    if np.all(factors == 1):
        return None
    factor, low, high, original = float(factors.max()), 1.0, 4.0, 8192
    base = file.stated("rope.freq_base", 10000.0)
    wavelength = 2 * math.pi * base ** (np.arange(0, width, 2) / width)
    blend = np.clip((original / wavelength - low) / (high - low), 0, 1)
    expected = 1 / ((1 - blend) / factor + blend)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-5, atol=0):
        raise _dropped(file, "its RoPE factors (rope_freqs.weight), which are not those of Llama 3.1 or 3.2")
    return {
        "rope_type": "llama3",
        "factor": _shortest(factor),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _refused(file: GGUFFile, key: str, why: str) -> StudyError:
    return file.unfit(f" states {file.architecture}.{key} = {file.stated(key)}, {why}")


def _dropped(file: GGUFFile, what: str) -> StudyError:
    return file.unfit(f": {what} would be lost in the conversion")
