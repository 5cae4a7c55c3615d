"""A GGUF file made into a directory in Hugging Face format, once for all studies of this machine."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter
from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES
from transformers.utils import logging
from transformers.utils.quantization_config import GgufConfig

from sinkstudy.errors import StudyError, first_sentence
from sinkstudy.models.cache import cache_folder, converted_folder, fetched_gguf, make_once
from sinkstudy.models.gguf_config import complete_config
from sinkstudy.models.gguf_file import GGUFFile, read_gguf
from sinkstudy.models.gguf_tokenizer import adds_bos, check_saved, tokenizer_of
from sinkstudy.models.gguf_weights import layers_of, refuse
from sinkstudy.models.loading import not_finite
from sinkstudy.models.sharded import write_shards
from sinkstudy.models.sources import check_sha256, file_sha256, resolve_source
from sinkstudy.models.spec import WHEEL, is_remote

RECORD = "sinkstudy.json"


def gguf_path(settings: Mapping[str, Any], inputs: Sequence[str], root: Path) -> Path:
    """The GGUF file of a model, which may be gone where its conversion is on this machine.

    `settings`: source, gguf and sha256 as configured; `inputs`: the local file, or the record of what was fetched.
    """
    if WHEEL.fullmatch(settings["source"]):
        return fetched_gguf(settings["sha256"])
    if is_remote(settings, root):
        commit = json.loads(Path(inputs[0]).read_text(encoding="utf-8"))["commit"]
        return resolve_source(settings["source"], commit, [settings["gguf"]]) / settings["gguf"]
    return Path(inputs[0])


def convert_once(gguf: Path, sha256: str | None) -> dict[str, Any]:
    """Convert a GGUF file unless this machine has done so; the record of what it is, as plain JSON values.

    `gguf` may be gone where `sha256` names a file whose conversion is there. The record holds `sha256`, `bytes` (of the
    file), `architecture`, `quantization` (tensor types with counts) and `adds_bos`.

    Raises StudyError when the file is not whole, not the one with that digest, or cannot be carried over exactly, or
    when there is no room for the conversion.
    """
    if sha256 is None or not converted_folder(sha256).exists():
        if sha256 is not None and not gguf.exists():
            raise StudyError(
                f"the GGUF file of SHA-256 {sha256} is no longer in {cache_folder()}; fetch it again "
                "(snakemake --cores 4 --forcerun fetch_model --until fetch_model)."
            )
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
    _check_room(file, folder.parent)
    folder.mkdir()
    _write_weights(file, config, folder)
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
    if file.architecture not in {*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS}:
        raise file.unfit(f" is of architecture {file.architecture!r}, which Transformers cannot read from GGUF")
    try:
        config = AutoConfig.from_pretrained(file.path.parent, gguf_file=file.path.name)
    except Exception as error:
        raise StudyError(f"{file.path}: its configuration could not be read ({first_sentence(error)}).") from error
    # Transformers reads files of these few architectures completely, each by a function of its own.
    return config if file.architecture in GGUF_CONFIG_ARCHS else complete_config(config, file)


def _check_room(file: GGUFFile, cache: Path) -> None:
    """Say what the conversion takes; raise StudyError where the disk does not have it."""
    needed = 4 * sum(int(tensor.n_elements) for tensor in file.tensors.values())
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise StudyError(
            f"{file.path}: its conversion to float32 takes {needed / 1e9:.1f} GB in {cache}, where {free / 1e9:.1f} GB "
            "are free; make room there, or set cache to a folder of a larger disk."
        )
    print(f"the conversion of {file.path} takes {needed / 1e9:.1f} GB in {cache}", file=sys.stderr)


def _write_weights(file: GGUFFile, config: Any, folder: Path) -> None:
    """Weights and configuration; a layer in memory at a time, unless Transformers alone knows how to put them together
    or takes them apart again when saving (experts)."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    converters = [one for one in get_model_conversion_mapping(model) if isinstance(one, WeightConverter)]
    if converters or file.architecture in GGUF_CONFIG_ARCHS:
        _load(file, config).save_pretrained(folder)
        return
    write_shards(folder, layers_of(file, model))
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    GenerationConfig.from_model_config(model.config).save_pretrained(folder)


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
        refuse(file, sorted(map(str, info[kind])), f"are {kind.split('_')[0]}")
    refuse(file, not_finite(model), "hold numbers that are not finite")
    # The weights are plain float32 now, which Transformers refuses to save as a quantized model's.
    vars(model.config).pop("quantization_config", None)
    model.hf_quantizer = None
    model.generation_config = GenerationConfig.from_model_config(model.config)
    return model
