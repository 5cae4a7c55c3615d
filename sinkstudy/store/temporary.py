"""Under which name a file is written until it is whole."""

import os
import platform
from glob import escape
from pathlib import Path


def temporary_for(path: Path) -> Path:
    """A name beside `path`, this process's own, to be renamed to it.

    What killed processes of this machine left under such names is removed. Those that still run keep theirs: a job may
    outlive its workflow, and then each of the two replaces the file by a whole one.
    """
    start = f".{path.name}.{platform.node()}."
    for left in path.parent.glob(f"{escape(start)}*.tmp"):
        pid = left.name.removeprefix(start).removesuffix(".tmp")
        if pid.isdecimal() and not _runs(int(pid)):
            left.unlink(missing_ok=True)
    return path.with_name(f"{start}{os.getpid()}.tmp")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # no signal: only whether one could be sent
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True
