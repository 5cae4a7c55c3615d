"""Where a model comes from: a local directory, or the Hub by way of this machine's cache of it."""

import hashlib
import os
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub

from sinkstudy.errors import StudyError

_SUFFIXES = {".json", ".safetensors", ".model", ".py", ".bin"}
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
        or source.endswith(".gguf")
        or len(path.parts) > 2
        or (root / path.parts[0]).is_dir()
    )


def file_patterns(settings: Mapping[str, Any]) -> list[str]:
    """Which files of a Hub repository a model with these settings needs: no weights where they are drawn anew, no
    code and no pickles unless the configuration allows them, and only the GGUF file where there is one."""
    if settings["gguf"] is not None:
        return [settings["gguf"]]
    patterns = ["*.json", "*.model", "*.txt"]
    if settings["random_weights"] is None:
        patterns += ["*.safetensors", *(["*.bin"] if settings["allow_pickle"] else [])]
    return patterns + (["*.py"] if settings["trust_remote_code"] else [])


def fetch(source: str, revision: str | None, patterns: list[str]) -> dict[str, Any]:
    """Bring a Hub model into this machine's cache; the record of what was fetched, as plain JSON values.

    `revision`: commit, branch or tag; None is the default branch. `patterns`: which files, see `file_patterns`. The
    record holds `source`, `commit` (40 hex digits) and `files` (name: bytes). A token comes from the environment
    (HF_TOKEN) or the Hub's own login, and is not part of the record.

    Raises StudyError when the model is neither on the Hub nor, where there is no network, in the cache.
    """
    try:
        folder = Path(huggingface_hub.snapshot_download(source, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise StudyError(
            f"model source {source!r}{_at(revision)} is not a local directory and could not be fetched from the Hub "
            f"({type(error).__name__}); check the name, set HF_TOKEN if the model is gated, run "
            f"{_download(source, revision)} where there is network, or give the path of a local copy."
        ) from error
    files = {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    # The folder may hold more, fetched for somebody else.
    files = {name: size for name, size in files.items() if any(fnmatch(name, pattern) for pattern in patterns)}
    return {"source": source, "commit": folder.name, "files": files}


def resolve_source(source: str, revision: str | None, patterns: list[str]) -> Path:
    """The directory that holds a model: a local path, or a snapshot in the Hub's cache. Never uses the network.

    Raises StudyError when the model is not there, or not all of it.
    """
    local = as_path(source)
    if local.is_dir():
        return local
    where = {"revision": revision, "allow_patterns": patterns, "local_files_only": True}
    try:
        return Path(huggingface_hub.snapshot_download(source, **where))
    except Exception as error:
        raise StudyError(
            f"model source {source!r}{_at(revision)} is not a local directory and not, or not all of it, in the cache "
            f"of this machine ({type(error).__name__}); fetch it again (snakemake --cores 4 --forcerun fetch_model "
            f"--until fetch_model), or run {_download(source, revision)}."
        ) from error


def _at(revision: str | None) -> str:
    return f" at {revision!r}" if revision else ""


def _download(source: str, revision: str | None) -> str:
    return f"'hf download {source}{f' --revision {revision}' if revision else ''}'"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_sha256(what: str, found: str, wanted: str) -> None:
    """Raise StudyError naming `what` where the two digests differ."""
    if found != wanted.lower():
        raise StudyError(f"{what} has the SHA-256 {found}, but sha256 asks for {wanted}; correct one or the other.")


def content_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of a local model's files, for provenance: a directory has no commit."""
    whole = hashlib.sha256()
    for path in model_files(folder):
        whole.update(path.name.encode())
        whole.update(bytes.fromhex(file_sha256(path)))
    return f"sha256:{whole.hexdigest()}"


def model_files(folder: Path) -> list[Path]:
    """The files of a local model that decide what it computes, in name order."""
    return sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES or p.name in _NAMES)
