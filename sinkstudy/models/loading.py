"""Loading causal language models and their tokenizers, with a record of exactly what was loaded."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sinkstudy.errors import StudyError
from sinkstudy.models.sources import content_digest, file_patterns, resolve_source


@dataclass(frozen=True)
class ModelSpec:
    """A model as the configuration names it.

    `source`: a local directory in Hugging Face format, or the id of a Hub model in this machine's cache. `revision`:
    commit, branch or tag (Hub only).
    `random_weights`: a seed; the architecture is kept and its weights are drawn afresh. `bos`: `auto` does what
    the tokenizer does by itself, `always` makes sure of one beginning-of-sequence token, `never` leaves it out.
    `trust_remote_code`: run Python files of the model's directory. `allow_pickle`: load weights that are not
    safetensors. Both let whoever wrote the directory decide what happens on this machine.
    """

    source: str
    revision: str | None = None
    dtype: str = "float32"
    bos: str = "auto"
    device: str = "auto"
    random_weights: int | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with its tokenizer; `resolved` says which weights these are."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    spec: ModelSpec
    resolved: str
    provenance: dict[str, str] = field(default_factory=dict)


def load_model(spec: ModelSpec) -> LoadedModel:
    """Load `spec` for inference.

    Raises StudyError when the source cannot be found, lacks a tokenizer, or its weights are incomplete.
    """
    patterns = file_patterns(spec.random_weights, spec.trust_remote_code, spec.allow_pickle)
    folder = resolve_source(spec.source, spec.revision, patterns)
    device = pick_device(spec.device)
    tokenizer = _load_tokenizer(spec, folder)
    if spec.random_weights is None:
        model = _pretrained(spec, folder)
        resolved = folder.name if folder.parent.name == "snapshots" else content_digest(folder)
    else:
        model = _drawn(spec, folder)
        resolved = f"random weights, seed {spec.random_weights}"
    return LoadedModel(
        model=model.to(device).eval(),
        tokenizer=tokenizer,
        spec=spec,
        resolved=resolved,
        provenance={
            "source": spec.source,
            "revision": resolved,
            "dtype": spec.dtype,
            "bos": spec.bos,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "model_type": model.config.model_type,
        },
    )


def pick_device(wanted: str) -> torch.device:
    """`auto` takes a GPU when there is one. Raises StudyError when CUDA is asked for and absent."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise StudyError("device is 'cuda', but PyTorch sees no GPU here; use 'auto' or 'cpu'.")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def context_length(model: PreTrainedModel) -> int | None:
    """The most tokens the model takes, or None where its configuration does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def encode(loaded: LoadedModel, texts: Mapping[str, str]) -> dict[str, list[int]]:
    """Token ids of every prompt, by prompt id, in the order given.

    Raises StudyError as `tokenize` does, and where a prompt has more tokens than the model's context holds.
    """
    drawn = loaded.tokenizer(
        list(texts.values()),
        add_special_tokens=loaded.spec.bos == "auto",
        return_attention_mask=False,
        verbose=False,
    )
    token_ids = _checked(loaded, dict(zip(texts, drawn["input_ids"], strict=True)))
    context = context_length(loaded.model)
    for prompt, ids in token_ids.items():
        if context is not None and len(ids) > context:
            raise StudyError(
                f"prompt {prompt!r} has {len(ids)} tokens, but {loaded.spec.source!r} takes at most {context}; "
                "shorten it."
            )
    return token_ids


def tokenize(loaded: LoadedModel, text: str, prompt: str) -> list[int]:
    """Token ids of `text` under the model's `bos` setting; `prompt` is the id used in error messages.

    Raises StudyError for a doubled beginning-of-sequence token, or a token the model has no embedding for.
    """
    drawn = loaded.tokenizer(text, add_special_tokens=loaded.spec.bos == "auto", verbose=False)
    return _checked(loaded, {prompt: drawn["input_ids"]})[prompt]


def _checked(loaded: LoadedModel, drawn: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """The ids of each prompt with the BOS token the settings ask for, if they can be the model's input."""
    source, bos, bos_text = loaded.spec.source, loaded.tokenizer.bos_token_id, loaded.tokenizer.bos_token
    always, rows = loaded.spec.bos == "always", loaded.model.get_input_embeddings().num_embeddings
    if always and bos is None:
        raise StudyError(f"model {source!r}: bos is 'always', but its tokenizer has no BOS token.")
    checked = {prompt: [bos, *ids] if always else ids for prompt, ids in drawn.items()}
    for prompt, ids in checked.items():
        if bos is not None and ids[:2] == [bos, bos]:
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


def _load_tokenizer(spec: ModelSpec, folder: Path) -> PreTrainedTokenizerBase:
    try:
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
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, spec.dtype), **trust)
    except Exception as error:
        raise StudyError(f"model source {spec.source!r} could not be loaded: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    """The first sentence of what Transformers says, which may go on for pages."""
    said = str(error).strip()
    if "trust_remote_code" in said:
        return "it needs Python code that comes with it, which only trust_remote_code: true lets run"
    return re.split(r"(?<=[.!?])\s|\n", said)[0].rstrip(".") or type(error).__name__


def _pretrained(spec: ModelSpec, folder: Path) -> PreTrainedModel:
    source = spec.source
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, spec.dtype),
            # None takes safetensors where there are any. Not given, `trust_remote_code` asks on the terminal.
            use_safetensors=None if spec.allow_pickle else True,
            trust_remote_code=spec.trust_remote_code,
            output_loading_info=True,
        )
    except Exception as error:
        raise StudyError(f"model source {source!r} could not be loaded: {_reason(error)}.") from error
    for kind in ("missing_keys", "mismatched_keys"):
        if info[kind]:
            first = sorted(map(str, info[kind]))[0]
            raise StudyError(
                f"model source {source!r}: {len(info[kind])} tensors are {kind.split('_')[0]} (first: {first}); the "
                "checkpoint is incomplete or does not fit its config.json."
            )
    return model
