"""A GGUF file made into a directory in Hugging Face format, once for all studies of this machine."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import (
    GGUF_SUPPORTED_ARCHITECTURES,
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)
from transformers.utils import logging
from transformers.utils.quantization_config import GgufConfig

from sinkstudy.errors import StudyError, first_sentence
from sinkstudy.models.cache import cache_folder, converted_folder, fetched_gguf, make_once
from sinkstudy.models.gguf_config import complete_config
from sinkstudy.models.gguf_file import GGUFFile, read_gguf
from sinkstudy.models.gguf_tokenizer import adds_bos, check_saved, tokenizer_of
from sinkstudy.models.loading import not_finite
from sinkstudy.models.sources import check_sha256, file_sha256, resolve_source
from sinkstudy.models.spec import WHEEL, is_remote

RECORD = "sinkstudy.json"
_NO_WEIGHTS = {"rope_freqs.weight"}  # `gguf_config` reads it as a setting of RoPE


def gguf_path(settings: Mapping[str, Any], inputs: Sequence[str], root: Path) -> Path | None:
    """The GGUF file of a model; None where only its conversion is on this machine.

    `settings`: source, gguf and sha256 as configured; `inputs`: the local file, or the record of what was fetched.
    """
    if WHEEL.fullmatch(settings["source"]):
        path = fetched_gguf(settings["sha256"])
        return path if path.exists() else None
    if is_remote(settings, root):
        commit = json.loads(Path(inputs[0]).read_text(encoding="utf-8"))["commit"]
        return resolve_source(settings["source"], commit, [settings["gguf"]]) / settings["gguf"]
    return Path(inputs[0])


def convert_once(gguf: Path | None, sha256: str | None) -> dict[str, Any]:
    """Convert a GGUF file unless this machine has done so; the record of what it is, as plain JSON values.

    `gguf` may be None where `sha256` names a file whose conversion is there. The record holds `sha256`, `bytes` (of the
    file), `architecture`, `quantization` (tensor types with counts) and `adds_bos`.

    Raises StudyError when the file is not whole, not the one with that digest, or cannot be carried over exactly.
    """
    if gguf is None and not (sha256 and converted_folder(sha256).exists()):
        raise StudyError(
            f"the GGUF file of SHA-256 {sha256} is no longer in {cache_folder()}; fetch it again "
            "(snakemake --cores 4 --forcerun fetch_model --until fetch_model)."
        )
    if sha256 is None or (gguf is not None and not converted_folder(sha256).exists()):
        found = file_sha256(gguf)
        check_sha256(str(gguf), found, sha256 or found)
        sha256 = found
    folder = converted_folder(sha256)
    if make_once(folder, lambda path: _convert(read_gguf(gguf), sha256, path)):
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"converted {gguf} into {folder} ({size / 1e6:,.0f} MB)", file=sys.stderr)
    return json.loads((folder / RECORD).read_text(encoding="utf-8"))


def _convert(file: GGUFFile, sha256: str, folder: Path) -> None:
    logging.disable_progress_bar()  # Transformers' own; what takes time here is said in one line
    config = _config(file)
    tokenizer = tokenizer_of(file)
    model = _load(file, config)
    folder.mkdir()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    check_saved(tokenizer, folder)
    record = {
        "adds_bos": adds_bos(file),
        "architecture": file.architecture,
        "bytes": file.path.stat().st_size,
        "quantization": file.quantization,
        "sha256": sha256,
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)  # a cache may be shared by the users of a machine


def _config(file: GGUFFile) -> Any:
    if file.architecture not in {*GGUF_SUPPORTED_ARCHITECTURES, *_by_new_reader()}:
        raise StudyError(
            f"{file.path} is of architecture {file.architecture!r}, which Transformers cannot read from GGUF; give the "
            "model's directory in Hugging Face format instead."
        )
    try:
        config = AutoConfig.from_pretrained(file.path.parent, gguf_file=file.path.name)
    except Exception as error:
        raise StudyError(f"{file.path}: its configuration could not be read ({first_sentence(error)}).") from error
    return config if file.architecture in _by_new_reader() else complete_config(config, file)


def _by_new_reader() -> set[str]:
    """Architectures whose files Transformers reads completely, each by a function of its own."""
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS

    return set(GGUF_CONFIG_ARCHS)


def _load(file: GGUFFile, config: Any) -> PreTrainedModel:
    """The model with dequantized float32 weights, every tensor of the file in its place."""
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            file.path.parent,
            gguf_file=file.path.name,
            config=config,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    except Exception as error:
        raise StudyError(f"{file.path} could not be loaded by Transformers ({first_sentence(error)}).") from error
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if info[kind]:
            _refuse_tensors(file, sorted(map(str, info[kind])), f"are {kind.split('_')[0]}")
    if file.architecture not in _by_new_reader():
        processor = TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)(config=config.to_dict())
        named = set(get_gguf_hf_weights_map(model, processor)) | _NO_WEIGHTS
        _refuse_tensors(file, sorted(set(file.tensor_types) - named), "have no place in Transformers' model")
    _refuse_tensors(file, not_finite(model), "hold numbers that are not finite")
    # The weights are plain float32 now, which Transformers refuses to save as a quantized model's.
    vars(model.config).pop("quantization_config", None)
    model.hf_quantizer = None
    model.generation_config = GenerationConfig.from_model_config(model.config)
    return model


def _refuse_tensors(file: GGUFFile, names: list[str], what: str) -> None:
    if names:
        raise StudyError(
            f"{file.path}: {len(names)} tensors {what} (first: {names[0]}); the file is incomplete, or of a kind that "
            "cannot be carried over exactly."
        )
