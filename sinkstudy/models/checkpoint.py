"""What a local directory in Hugging Face format must hold, checked without loading it: no torch, no weights read."""

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from sinkstudy.errors import StudyError

# Any one of these is a tokenizer that Transformers can try to load.
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
# Configurations of causal language models use these names for counts that must be at least 1.
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
_COUNTS = (
    *_LAYERS,
    *("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads", "num_kv_heads"),
    *("hidden_size", "n_embd", "d_model", "vocab_size"),
)
# This matches the layers of a decoder, not those of an image or audio encoder beside it.
_OF_LAYER = re.compile(
    r"(?:(?:model|language_model|text_model|transformer|decoder|gpt_neox)\.)*(?:layers|h|blocks)\.(\d+)\."
)


def check_checkpoint(folder: Path, weights: bool = True, pickled: bool = False) -> None:
    """Raise StudyError naming what is missing, cut short or contradictory in a model's directory.

    `weights`: False for a model of random weights, which needs its configuration and tokenizer only. `pickled`: weights
    in PyTorch's own format will do.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise StudyError(f"{folder} holds no config.json; give a directory in Hugging Face format.")
    layers = _check_counts(config)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise StudyError(f"{folder} holds no tokenizer; add tokenizer.json or the tokenizer's own files.")
    if not weights:
        return
    files = _weight_files(folder)
    if not files:
        if pickled and any(folder.glob("*.bin")):
            return
        raise StudyError(
            f"{folder} holds no *.safetensors; save the weights in that format, since loading any other can run code "
            "(allow_pickle: true takes *.bin nevertheless)."
        )
    tensors = stored_tensors(folder)
    stored = 1 + max((int(found[1]) for found in map(_OF_LAYER.match, tensors) if found), default=-1)
    if layers is not None and stored > layers:
        raise StudyError(
            f"{folder} holds the weights of {stored} layers, but its config.json names {layers}; the others would be "
            "left out without a word, so copy the config.json that belongs to these weights."
        )


def _check_counts(path: Path) -> int | None:
    """How many layers a checkpoint may hold, where its configuration says so."""
    config = _read_json(path)
    language = config.get("text_config")  # of a model that also takes images or sound
    settings = config | language if isinstance(language, dict) else config
    for key in _COUNTS:
        if type(settings.get(key)) in (int, float) and settings[key] < 1:
            raise StudyError(f"{path}: {key} is {settings[key]}, but must be at least 1; copy the file again.")
    stated = [settings[key] for key in _LAYERS if type(settings.get(key)) is int]
    # Layers that predict further tokens are stored after the others, and are not run.
    return stated[0] + (settings.get("num_nextn_predict_layers") or 0) if stated else None


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that Transformers would load, in name order."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise StudyError(f"{index}: weight_map must say which file holds each tensor; copy the file again.")
    return [_beside(index, name) for name in sorted(set(map(str, weight_map.values())))]


def _beside(index: Path, name: str) -> Path:
    if PurePath(name).name != name or not name.endswith(".safetensors"):
        raise StudyError(f"{index} names the file {name!r}; it may only name *.safetensors files of its own folder.")
    if not (index.parent / name).is_file():
        raise StudyError(f"{index.parent / name} is missing, although {index.name} names it; copy the whole model.")
    return index.parent / name


class StoredTensor(NamedTuple):
    file: Path
    shape: tuple[int, ...]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a model's safetensors files by name.

    Raises StudyError for a file whose header does not fit its size.
    """
    return {name: StoredTensor(file, shape) for file in _weight_files(folder) for name, shape in _tensors(file)}


def _tensors(path: Path) -> list[tuple[str, tuple[int, ...]]]:
    try:
        with safe_open(path, framework="numpy") as stored:
            return [(name, tuple(stored.get_slice(name).get_shape())) for name in stored.keys()]  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        said = str(error).removeprefix("Error while deserializing header: ")
        raise StudyError(
            f"{path} is not a safetensors file, is altered, or cut short ({said}); copy it again."
        ) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StudyError(f"{path} is not valid JSON ({error}); copy it again.") from None
    if not isinstance(content, dict):
        raise StudyError(f"{path} is not a JSON object; copy it again.")
    return content
