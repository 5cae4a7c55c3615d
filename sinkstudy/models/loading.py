"""Loading causal language models and their tokenizers, with a record of exactly what was loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from sinkstudy.errors import StudyError, first_sentence
from sinkstudy.models.allocator import keep_freed_memory, return_freed_memory
from sinkstudy.models.cache import cache_folder, converted_folder
from sinkstudy.models.check import check_checkpoint
from sinkstudy.models.offload import copies_folder, is_offloaded, left_in_place, offload_map
from sinkstudy.models.sources import content_digest, file_patterns, resolve_source
from sinkstudy.models.spec import ModelSpec


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with its tokenizer; `resolved` says which weights these are."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    spec: ModelSpec
    resolved: str
    provenance: dict[str, str] = field(default_factory=dict)

    def piece(self, text: str) -> list[int]:
        """Token ids of a piece of a longer text, without special tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False)


def load_model(spec: ModelSpec, offload: str | None = None, memory: int | None = None) -> LoadedModel:
    """Load `spec` for inference.

    `offload`: auto, always or never, see `sinkstudy.models.offload`, within `memory` bytes; None loads all of it.
    Raises StudyError when the source cannot be found, lacks a tokenizer, its weights are incomplete, or do not fit.
    """
    folder = _folder(spec)
    device = pick_device(spec.device)
    tokenizer = _load_tokenizer(spec, folder)
    logging.disable_progress_bar()  # loading takes seconds, and jobs side by side would write over one another
    quantization = "none"
    if spec.random_weights is not None:
        model, resolved = _drawn(spec, folder), f"random weights, seed {spec.random_weights}"
    else:
        model, resolved = _pretrained(spec, folder, device, offload, memory), _resolved(spec, folder)
        if spec.quantization is not None:
            quantization = f"{spec.quantization}; dequantized to float32"
    return LoadedModel(
        model=(model if is_offloaded(model) else model.to(device)).eval(),
        tokenizer=tokenizer,
        spec=spec,
        resolved=resolved,
        provenance={
            "source": spec.source,
            "revision": resolved,
            "quantization": quantization,
            "dtype": spec.dtype,
            "bos": spec.bos,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "model_type": model.config.model_type,
        },
    )


def _folder(spec: ModelSpec) -> Path:
    if not spec.is_gguf:
        return resolve_source(spec.source, spec.revision, file_patterns(vars(spec)))
    folder = converted_folder(spec.sha256) if spec.sha256 else None
    if folder is None or not folder.is_dir():
        raise StudyError(
            f"model source {spec.source!r} has not been converted on this machine, or its conversion was removed from "
            f"{cache_folder()}; convert it again (snakemake --cores 4 --forcerun convert_model --until convert_model)."
        )
    return folder


def _resolved(spec: ModelSpec, folder: Path) -> str:
    """Which weights these are: the commit of a Hub model, or else a digest."""
    if spec.is_gguf:
        return f"sha256:{spec.sha256}"
    return folder.name if folder.parent.name == "snapshots" else content_digest(folder)


def pick_device(wanted: str) -> torch.device:
    """`auto` takes a GPU when there is one. Raises StudyError when CUDA is asked for and absent."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise StudyError("device is 'cuda', but PyTorch sees no GPU here; use 'auto' or 'cpu'.")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def context_length(model: PreTrainedModel) -> int | None:
    """The most tokens the model takes, or None where its configuration does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def encode(loaded: LoadedModel, texts: Mapping[str, str]) -> dict[str, list[int]]:
    """Token ids of every prompt under the model's `bos` setting, by prompt id, in the order given, however long.

    Raises StudyError for a doubled beginning-of-sequence token, or a token the model has no embedding for.
    """
    source, bos, bos_text = loaded.spec.source, loaded.tokenizer.bos_token_id, loaded.tokenizer.bos_token
    setting, rows = loaded.spec.bos, loaded.model.get_input_embeddings().num_embeddings
    added = {"always": 1, "double": 2}.get(setting, 0)
    if added and bos is None:
        raise StudyError(f"model {source!r}: bos is {setting!r}, but its tokenizer has no BOS token.")
    options = {"add_special_tokens": setting == "auto", "return_attention_mask": False, "verbose": False}
    encoded = loaded.tokenizer(list(texts.values()), **options)["input_ids"]
    checked = {prompt: [bos] * added + ids for prompt, ids in zip(texts, encoded, strict=True)}
    for prompt, ids in checked.items():
        if bos is not None and ids[max(added - 1, 0) :][:2] == [bos, bos]:
            raise StudyError(
                f"prompt {prompt!r}: its tokens begin with BOS twice; the text already holds {bos_text!r}, so remove "
                "it there or set bos to 'never'."
            )
        if not ids:
            raise StudyError(f"prompt {prompt!r} has no tokens under the tokenizer of {source!r}.")
        if max(ids) >= rows:
            raise StudyError(
                f"prompt {prompt!r}: token id {max(ids)} is outside the {rows} embeddings of {source!r}; the "
                "tokenizer does not belong to these weights."
            )
    return checked


def tokenize(loaded: LoadedModel, text: str, prompt: str) -> list[int]:
    """Token ids of one text, as `encode` gives them; `prompt` is the id used in error messages."""
    return encode(loaded, {prompt: text})[prompt]


def bos_arms(loaded: LoadedModel, arms: list[str]) -> dict[str, LoadedModel]:
    """The model under each of these settings of `bos` that its tokenizer has a BOS token for."""
    has_bos = loaded.tokenizer.bos_token_id is not None
    return {
        arm: replace(loaded, spec=replace(loaded.spec, bos=arm), provenance=loaded.provenance | {"bos": arm})
        for arm in arms
        if has_bos or arm in ("auto", "never")
    }


def within_context(loaded: LoadedModel, token_ids: Mapping[str, list[int]], too_long: str) -> dict[str, list[int]]:
    """Every prompt cut to the model's context, which leaves all shorter prefixes exact.

    `too_long`: `cut`, or `refuse`, which raises StudyError naming the first prompt with more tokens than that.
    """
    context = context_length(loaded.model)
    for prompt, ids in token_ids.items():
        if too_long == "refuse" and context is not None and len(ids) > context:
            raise StudyError(
                f"prompt {prompt!r} has {len(ids)} tokens, but {loaded.spec.source!r} takes at most {context}; "
                "shorten it, or set capture.too_long to cut."
            )
    return {prompt: ids[:context] for prompt, ids in token_ids.items()}


def _load_tokenizer(spec: ModelSpec, folder: Path) -> PreTrainedTokenizerBase:
    try:
        if spec.is_gguf:
            # AutoTokenizer would take classes that split text in their own way, whatever the file says.
            return PreTrainedTokenizerFast.from_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=spec.trust_remote_code)
    except Exception as error:
        raise StudyError(
            f"model source {spec.source!r} has no tokenizer that loads: {_reason(error)}; the directory needs "
            "tokenizer.json or the tokenizer's own files."
        ) from error


def _drawn(spec: ModelSpec, folder: Path) -> PreTrainedModel:
    torch.manual_seed(spec.random_weights)
    trust = {"trust_remote_code": spec.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(folder, **trust)
        return AutoModelForCausalLM.from_config(config, dtype=spec.dtype, **trust)
    except Exception as error:
        raise StudyError(f"model source {spec.source!r} could not be loaded: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    """The first sentence of what Transformers says, which may go on for pages."""
    if "trust_remote_code" in str(error):
        return "it needs Python code that comes with it, which only trust_remote_code: true lets run"
    return first_sentence(error)


def _pretrained(
    spec: ModelSpec, folder: Path, device: torch.device, offload: str | None, memory: int | None
) -> PreTrainedModel:
    source, model, info = spec.source, None, {}
    check_checkpoint(folder, pickled=spec.allow_pickle)  # what was fetched has not been looked at before
    try:
        places = None if offload is None else offload_map(folder, spec, offload, device, memory)
        offloading = {"device_map": places, "offload_folder": copies_folder()} if places else {}
        if places:
            return_freed_memory()
        else:
            keep_freed_memory()
        if places and not spec.allow_pickle:
            model = left_in_place(folder, spec, places, device)
        if model is None:
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=spec.dtype,
                # None takes safetensors where there are any. Not given, `trust_remote_code` asks on the terminal.
                use_safetensors=None if spec.allow_pickle else True,
                trust_remote_code=spec.trust_remote_code,
                output_loading_info=True,
                **offloading,
            )
    except StudyError:
        raise
    except Exception as error:
        raise StudyError(f"model source {source!r} could not be loaded: {_reason(error)}.") from error
    for kind in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, info.get(kind, []))):
            raise StudyError(
                f"model source {source!r}: {len(names)} tensors are {kind.split('_')[0]} (first: {names[0]}); the "
                "checkpoint is incomplete or does not fit its config.json."
            )
    if names := not_finite(model):
        raise StudyError(f"model source {source!r}: tensor {names[0]} is not finite everywhere; copy it again.")
    return model


def not_finite(model: PreTrainedModel) -> list[str]:
    """Names of the tensors that hold infinities or NaN; of offloaded layers they show when attention does."""
    here = {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta}
    return [name for name, tensor in here.items() if not is_finite(tensor)]


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no number is infinite or NaN; without a second copy of the tensor, which `torch.isfinite` makes."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(torch.stack(tensor.aminmax())).all())
