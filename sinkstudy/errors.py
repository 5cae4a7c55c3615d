"""The exceptions a user is meant to read."""

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class StudyError(ValueError):
    """Something the user gave is wrong; the message is one sentence that names it and says what would be right."""


class DamagedFileError(StudyError):
    """The result at `path` is not what belongs there: truncated, altered, foreign; `what` says how that shows."""

    def __init__(self, path: Path, what: str):
        mending = f"rm {'-r ' if path.is_dir() else ''}{shlex.quote(str(path))} && snakemake --cores 4"
        super().__init__(f"{path}: {what}; delete it and run again to make it anew ({mending}).")


class MisplacedFileError(StudyError):
    """The result at `path` does not belong to those beside it; `why` says how that shows."""

    def __init__(self, path: Path | str, why: str):
        super().__init__(f"{path}: {why}; delete the one that does not belong there and run again.")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever a library raises over a damaged file in the block, which only reads it, names the file."""
    try:
        yield
    except StudyError:
        raise
    except Exception as error:
        # With an error number the system failed (no such file, a lock, a lost mount), without one the content is wrong.
        if isinstance(error, OSError) and error.errno is not None:
            said = os.strerror(error.errno)
            raise StudyError(f"{path}: cannot be read ({said}); mend that and run again.") from error
        reason = first_sentence(error).strip('"')
        raise DamagedFileError(path, f"it cannot be read ({reason})") from error


def first_sentence(error: BaseException) -> str:
    """The first sentence of what another library says, which may go on for pages; no full stop at its end."""
    said = re.split(r"(?<=[.!?])\s|\n", str(error).strip())[0].rstrip(".")
    return said or type(error).__name__
