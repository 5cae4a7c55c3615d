"""What a local directory in Hugging Face format must hold, checked without loading it: no torch, no weights read."""

import json
import struct
from pathlib import Path
from typing import Any

from sinkstudy.errors import StudyError

# Any one of these is a tokenizer that Transformers can try to load.
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


def check_checkpoint(folder: Path, weights: bool = True, pickled: bool = False) -> None:
    """Raise StudyError naming what is missing or cut short in a model's directory.

    `weights`: False for a model of random weights, which needs its configuration and tokenizer only. `pickled`: weights
    in PyTorch's own format will do.
    """
    if not (folder / "config.json").is_file():
        raise StudyError(f"{folder} holds no config.json; give a directory in Hugging Face format.")
    _read_json(folder / "config.json")
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise StudyError(f"{folder} holds no tokenizer; add tokenizer.json or the tokenizer's own files.")
    if not weights:
        return
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = {folder / str(name) for name in _read_json(index).get("weight_map", {}).values()}
    else:
        shards = set(folder.glob("*.safetensors"))
    if not shards:
        if pickled and any(folder.glob("*.bin")):
            return
        raise StudyError(
            f"{folder} holds no *.safetensors; save the weights in that format, since loading any other can run code "
            "(allow_pickle: true takes *.bin nevertheless)."
        )
    for shard in sorted(shards):
        if not shard.is_file():
            raise StudyError(f"{shard} is missing, although {index.name} names it; copy the whole model.")
        _check_whole(shard)


def _check_whole(path: Path) -> None:
    """The header of a safetensors file tells where its last tensor ends: compare that with the file's size."""
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size:
                raise ValueError("header")
            tensors = json.loads(stream.read(length))
        end = 8 + length + max(tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__")
    except (struct.error, ValueError, TypeError, KeyError, AttributeError):
        raise StudyError(f"{path} is not a safetensors file, or cut short in its header; copy it again.") from None
    if size != end:
        raise StudyError(f"{path} has {size} bytes instead of {end}: it is cut short or altered; copy it again.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StudyError(f"{path} is not valid JSON ({error}); copy it again.") from None
    if not isinstance(content, dict):
        raise StudyError(f"{path} is not a JSON object; copy it again.")
    return content
