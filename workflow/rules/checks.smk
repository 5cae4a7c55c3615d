"""What people write is checked before anything reads it, so that a mistake ends in one sentence."""

import sys
from pathlib import Path

from sinkstudy.errors import StudyError
from sinkstudy.workflow.files import check_yaml


def checked(check, *arguments):
    """What `check` returns. Where it refuses, Snakemake ends with its sentence instead of a traceback."""
    try:
        return check(*arguments)
    except StudyError as error:
        sys.exit(f"error: {error}")


checked(check_yaml, [Path("config.yaml"), *map(Path, workflow.configfiles)])
