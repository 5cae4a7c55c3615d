"""The exceptions a user is meant to read."""

import re
import shlex
from pathlib import Path


class StudyError(ValueError):
    """Something the user gave is wrong; the message is one sentence that names it and says what would be right."""


class DamagedFileError(StudyError):
    """The result at `path` is not what belongs there: truncated, altered, foreign; `what` says how that shows."""

    def __init__(self, path: Path, what: str):
        mending = f"rm {shlex.quote(str(path))} && snakemake --cores 4"
        super().__init__(f"{path}: {what}; delete it and run again to make it anew ({mending}).")


def first_sentence(error: BaseException) -> str:
    """The first sentence of what another library says, which may go on for pages; no full stop at its end."""
    said = re.split(r"(?<=[.!?])\s|\n", str(error).strip())[0].rstrip(".")
    return said or type(error).__name__
