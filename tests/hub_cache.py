"""A cache of the Hugging Face Hub as `hf download` leaves it, filled from a local directory."""

import shutil
from pathlib import Path


def cache_model(cache: Path, repository: str, commit: str, source: Path) -> Path:
    """Put the files of `source` into `cache` as `repository` at `commit`, and make that `main`."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(source, folder / "snapshots" / commit)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs/main").write_text(commit)
    return folder / "snapshots" / commit
