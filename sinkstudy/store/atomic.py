"""Every file under results/ is written beside its final name and renamed when it is whole."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

import psutil


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a name beside `path` to write to; the file that is there at the end is put on disk and becomes `path`.
    On an exception nothing is left behind, and `path` stays as it was. An OSError from writing names `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name holds the process: a job may outlive its workflow, and then each of two jobs must rename its own file.
    start = f".{path.name}.{platform.node()}."
    _remove_leftovers(path.parent, start)
    temporary = path.with_name(f"{start}{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None and str(error.filename) in ("None", str(temporary)):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: Path | str, content: str | bytes) -> None:
    """Write a whole file by `atomic_write`, text as UTF-8."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def _remove_leftovers(folder: Path, start: str) -> None:
    """Remove what processes of this machine that no longer run left under such a name."""
    for left in folder.glob(f"{escape(start)}*.tmp"):
        pid = left.name.removeprefix(start).removesuffix(".tmp")
        with suppress(OverflowError):  # A number too long for a process is another program's.
            if pid.isdecimal() and not psutil.pid_exists(int(pid)):
                left.unlink(missing_ok=True)
