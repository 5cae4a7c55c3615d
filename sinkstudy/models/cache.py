"""The folder of this machine where fetched and converted models lie, shared by all studies."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from sinkstudy.errors import StudyError

CONVERSION = 1  # raise this when conversions give other files than before; older conversions are then left alone
VARIABLE = "SINKSTUDY_CACHE"  # the workflow tells its jobs by this environment variable where the cache lies


def cache_folder() -> Path:
    """Where the cache lies: `cache` of the configuration, or the user's cache folder of this system."""
    return Path(os.environ.get(VARIABLE) or user_cache_path("sinkstudy")).expanduser().absolute()


def converted_folder(sha256: str) -> Path:
    """Where the conversion of the GGUF file with this digest lies, or would."""
    return cache_folder() / "converted" / f"{sha256}-{CONVERSION}"


def fetched_gguf(sha256: str) -> Path:
    """Where a GGUF file taken out of a wheel lies, or would."""
    return cache_folder() / "gguf" / f"{sha256}.gguf"


def make_once(target: Path, make: Callable[[Path], None]) -> bool:
    """Have `make` fill a temporary path beside `target`, which then takes the name `target`; whether it had to.

    Nothing is done where `target` is there already. Of several processes one makes it and the others wait; a process
    that is killed leaves nothing under the name `target`, and its leftovers go with the next attempt. `make` may write
    a file or a folder. Raises StudyError where the place cannot be written.
    """
    if target.exists():
        return False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(
            f"{target.parent}: cannot be made ({error.strerror}); set cache to a folder that can be written."
        ) from error
    with FileLock(target.parent / f".{target.name}.lock"):
        if target.exists():
            return False
        unfinished = target.parent / f".{target.name}.unfinished"
        _remove(unfinished)
        try:
            make(unfinished)
            unfinished.replace(target)
        finally:
            _remove(unfinished)
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
