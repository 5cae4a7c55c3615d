"""Whether a model's source can be a model, seen from its configuration and the disk: nothing is loaded or fetched."""

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from sinkstudy.errors import StudyError
from sinkstudy.models.gguf_file import check_header
from sinkstudy.models.sources import as_path
from sinkstudy.models.spec import is_gguf, is_remote

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


def check_source(name: str, model: Mapping[str, Any], root: Path) -> None:
    """Raise StudyError naming `models.NAME.KEY` where a local source (looked up from `root`) is not there or not whole.

    `model`: its settings, as `sinkstudy.workflow.settings.Model` fills them. What lies on the Hub or in a package index
    shows when it is fetched, what a GGUF file lacks when it is converted.
    """
    if is_remote(model, root):
        for key in ("trust_remote_code", "allow_pickle"):
            if model[key]:
                raise StudyError(
                    f"models.{name}.{key} is for local directories only; download {model['source']!r}, look at what it "
                    "holds, and give the path."
                )
        return
    source, path = model["source"], root / as_path(model["source"])
    if not source.endswith(".gguf") and not path.is_dir():
        raise StudyError(
            f"models.{name}.source is {source!r}, but there is no such directory; give a directory in Hugging Face "
            "format, a .gguf file, or a Hub id like 'owner/name'."
        )
    key, file = ("gguf", path / model["gguf"]) if model["gguf"] else ("source", path)
    try:
        if not is_gguf(model):
            check_checkpoint(path, weights=model["random_weights"] is None, pickled=model["allow_pickle"])
        elif file.is_file():
            check_header(file)
        else:
            raise StudyError(f"{file} is no file; give the path of an existing GGUF file.")
    except StudyError as error:
        raise StudyError(f"models.{name}.{key}: {error}") from None


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
    if not _weight_files(folder):
        if pickled and any(folder.glob("*.bin")):
            return
        raise StudyError(
            f"{folder} holds no *.safetensors; save the weights in that format, since loading any other can run code "
            "(allow_pickle: true takes *.bin nevertheless)."
        )
    stored = 1 + max((int(found[1]) for found in map(_OF_LAYER.match, stored_tensors(folder)) if found), default=-1)
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
    tensors = {}
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="numpy") as stored:
                for name in stored.keys():  # noqa: SIM118
                    tensors[name] = StoredTensor(file, tuple(stored.get_slice(name).get_shape()))
        except (SafetensorError, OSError) as error:
            said = str(error).removeprefix("Error while deserializing header: ")
            raise StudyError(
                f"{file} is not a safetensors file, is altered, or cut short ({said}); copy it again."
            ) from None
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StudyError(f"{path} is not valid JSON ({error}); copy it again.") from None
    if not isinstance(content, dict):
        raise StudyError(f"{path} is not a JSON object; copy it again.")
    return content
