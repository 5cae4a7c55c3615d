"""Where a model comes from: a local directory, the offline cache, or the Hub."""

import hashlib
import os
from pathlib import Path

from sinkstudy.errors import StudyError

_SUFFIXES = {".json", ".safetensors", ".model"}
_NAMES = {"merges.txt", "vocab.txt"}


def as_path(source: str) -> Path:
    """A model source read as a path; a `~user` nobody has stays as it is."""
    return Path(os.path.expanduser(source))  # noqa: PTH111 - Path.expanduser raises for an unknown user


def is_local(source: str, root: Path) -> bool:
    """Whether a model source means a directory of this machine rather than a Hub id.

    A Hub id has the form `name` or `owner/name`. Anything that starts like a path, or whose first part is a
    folder beside the configuration, is meant as a path.
    """
    path = as_path(source)
    return (
        (root / path).exists()
        or source.startswith(("~", "."))
        or len(path.parts) > 2
        or (root / path.parts[0]).is_dir()
    )


def resolve_source(source: str, revision: str | None) -> Path:
    """The directory that holds a model: a local path, else the offline cache, else a download from the Hub."""
    local = as_path(source)
    if local.is_dir():
        return local
    # Imported here: importing the Hub client costs half a second that local models need not pay.
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(source, revision=revision, local_files_only=True, allow_patterns=patterns))
    except Exception:  # not in the cache, whatever the reason
        pass
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except Exception as error:
        at = f" --revision {revision}" if revision else ""
        raise StudyError(
            f"model source {source!r} is not a local directory, not in the offline cache, and could not be downloaded "
            f"({type(error).__name__}); run 'hf download {source}{at}' on a machine with network (and HF_TOKEN "
            "set if the model is gated), or give the path of a local copy."
        ) from error


def content_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of a local model's files, for provenance: a directory has no commit."""
    whole = hashlib.sha256()
    for path in model_files(folder):
        whole.update(path.name.encode())
        with path.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return f"sha256:{whole.hexdigest()}"


def model_files(folder: Path) -> list[Path]:
    """The files of a local model that decide what it computes, in name order."""
    return sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES or p.name in _NAMES)
