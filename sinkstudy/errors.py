"""The exceptions a user is meant to read."""

from pathlib import Path


class StudyError(ValueError):
    """Something the user gave is wrong; the message is one sentence that names it and says what would be right."""


class DamagedFileError(StudyError):
    """A result at `path` is not what was written there: truncated, altered, foreign; `what` says how that shows."""

    def __init__(self, path: Path, what: str):
        super().__init__(f"{path}: {what}; delete it and run again to make it anew.")
        self.path = path
        self.what = what
