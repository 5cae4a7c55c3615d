"""Writing tiny GGUF files with gguf's own writer, from models of Transformers.

What llama.cpp's conversion does to weights (rows of Q and K reordered, norms stored with one added, transposed
matrices) is done here by itself, so that loading can be compared with the weights that were written.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedModel

_TEXT = ["the cat sat on the mat and the dog ate 1234 bones", "Hello world, where is the sink of 2048 tokens?"]


def _same(weight: np.ndarray, _: object) -> np.ndarray:
    return weight


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """The two halves of each head's rows taken in turn, as llama.cpp rotates neighbours."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _halved(weight: np.ndarray, heads: int) -> np.ndarray:
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


@dataclass(frozen=True)
class Family:
    """How one architecture is written: its name in GGUF, and per part of a tensor's name what is done and undone."""

    arch: str
    changes: dict[str, tuple[Callable, Callable]] = field(default_factory=dict)
    rms: bool = True


_PLUS_ONE = (lambda w, _: w + 1, lambda w, _: w - 1)
_TRANSPOSED = (lambda w, _: np.ascontiguousarray(w.T), lambda w, _: np.ascontiguousarray(w.T))
FAMILIES = {
    "llama": Family("llama", {"q_proj.weight": (_interleaved, _halved), "k_proj.weight": (_interleaved, _halved)}),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "gemma2": Family("gemma2", {"norm.weight": _PLUS_ONE}),
    "gemma3_text": Family("gemma3", {"norm.weight": _PLUS_ONE}),
    "gpt2": Family("gpt2", {f"{n}.weight": _TRANSPOSED for n in ("c_attn", "c_proj", "c_fc")}, rms=False),
    "phi3": Family("phi3"),
    "stablelm": Family("stablelm", rms=False),
}


def write_gguf(
    model: PreTrainedModel,
    path: Path,
    quantized: Kind = Kind.Q8_0,
    tokenizer: Callable[[gguf.GGUFWriter, int], None] | None = None,
    extra: Callable[[gguf.GGUFWriter], None] | None = None,
    leave_out: str | None = None,
    more: dict[str, np.ndarray] | None = None,
    shape: dict[str, Any] | None = None,
) -> None:
    """Write `model` to `path`; every matrix that fits becomes blocks of `quantized`, and the model is given exactly
    the weights that were written.

    `extra` adds metadata, `more` tensors; `leave_out` is a part of the name of tensors not to write; `shape` replaces
    values of the configuration in what is written.
    """
    config = model.config
    family = FAMILIES[config.model_type]
    stated = config.to_dict() | (shape or {})
    writer = gguf.GGUFWriter(path, family.arch)
    _write_shape(writer, config, family, stated)
    (tokenizer or byte_level_tokenizer)(writer, config.vocab_size)
    if extra:
        extra(writer)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.arch)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tied = set(model.all_tied_weights_keys or {})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            written = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert written is not None, name
            if name in tied or (leave_out and leave_out in written):
                continue
            to, back = next((pair for part, pair in family.changes.items() if name.endswith(part)), (_same, _same))
            heads = config.num_key_value_heads if "k_proj" in name else config.num_attention_heads
            array = to(parameter.numpy(), heads).astype(np.float32)
            kind = quantized if array.ndim == 2 and array.shape[1] % 32 == 0 else Kind.F32
            blocks = gguf.quants.quantize(array, kind)
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(back(gguf.quants.dequantize(blocks, kind), heads))))
            writer.add_tensor(written, blocks, raw_dtype=kind)
    for name, array in (more or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_shape(writer: gguf.GGUFWriter, config: Any, family: Family, stated: dict[str, Any]) -> None:
    writer.add_context_length(stated.get("max_position_embeddings") or stated["n_positions"])
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    gpt2 = config.model_type == "gpt2"
    writer.add_feed_forward_length(4 * config.hidden_size if gpt2 else config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    if not gpt2:
        writer.add_head_count_kv(config.num_key_value_heads)
    if family.rms:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(getattr(config, "layer_norm_eps", None) or config.layer_norm_epsilon)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if stated.get("head_dim"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    rope = getattr(config, "rope_parameters", None)
    if rope:
        rope = rope.get("full_attention", rope)
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1)))
    kinds = getattr(config, "layer_types", ["sliding_attention"])
    if stated.get("sliding_window") and "sliding_attention" in kinds:
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.model_type == "stablelm":
        writer.add_parallel_residual(config.use_parallel_residual)


def byte_level_tokenizer(
    writer: gguf.GGUFWriter, size: int, pre: str | None = "gpt-2", add_bos: bool | None = None
) -> None:
    """A byte-level BPE vocabulary of `size` tokens, the first of which is the control token `<|start|>`."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|start|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = [token for token, _ in vocabulary][:size]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), size)]
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(vocabulary) - 1) + [5] * (size - len(vocabulary)))
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)


def sentencepiece_tokenizer(writer: gguf.GGUFWriter, size: int, add_bos: bool | None = None) -> None:
    """A vocabulary with scores, as SentencePiece's BPE has it: special tokens, bytes, letters, and a few words."""
    words = [
        f"{gap}{word}" for word in ("the", "sink", "of", "cat", "sat", "on", "world", "hello") for gap in ("\u2581", "")
    ]
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?!"]
    pieces = list(dict.fromkeys([word[:end] for word in words for end in range(2, len(word) + 1)]))
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *letters, *pieces]
    tokens += [f"[unused{i}]" for i in range(size - len(tokens))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(letters) + len(pieces))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(size - 259)])
    writer.add_token_types(kinds + [5] * (size - len(kinds)))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
