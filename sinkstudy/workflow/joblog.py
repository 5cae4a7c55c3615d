"""The log of one job, and what its terminal shows: progress, and one sentence for what a user can mend."""

import atexit
import errno
import gc
import io
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import TextIO

from sinkstudy.errors import StudyError

# PyTorch's allocator and profiler and Transformers would write to the terminal past any log. They read these variables
# when they are imported, so the workflow puts them into the environment of every job.
QUIET = {"KINETO_LOG_LEVEL": "6", "TORCH_CPP_LOG_LEVEL": "ERROR", "TRANSFORMERS_VERBOSITY": "error"}
# A user can mend these errors of the disk. Other system errors may be faults of the code.
_SURROUNDINGS = {"ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE", "ENOTDIR"}


@contextmanager
def job_log(path: str | Path) -> Iterator[None]:
    """Copy stderr to the log file, with warnings and the traceback of whatever ends the job.

    What a user can mend (a StudyError, a full or unwritable disk) ends the process with status 1 and one sentence on
    the terminal.
    """
    # At its end Python searches everything that was loaded for garbage, which takes a second with PyTorch.
    atexit.register(gc.freeze)
    terminal, hooks = sys.stderr, (sys.unraisablehook, warnings.showwarning)
    try:
        file = io.TextIOWrapper(_CutShort(path, "w"), encoding="utf-8", write_through=True)
        with file as log, redirect_stderr(_Both(terminal, log)):
            # Python can only print some errors, such as h5py's while it lets go of a file on a full disk: the log gets
            # them, and warnings.
            sys.unraisablehook = lambda ignored: traceback.print_exception(ignored.exc_value, file=log)
            warnings.showwarning = lambda *about, **_: log.write(warnings.formatwarning(*about[:4]))
            try:
                yield
            except BaseException:
                traceback.print_exc(file=log)
                raise
            finally:
                sys.unraisablehook, warnings.showwarning = hooks
    except BaseException as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=terminal)
        raise SystemExit(1) from None


def _sentence(error: BaseException | None) -> str | None:
    """What to tell a user who can mend it, or None. A disk's error may be hidden behind that of who used the disk."""
    if isinstance(error, StudyError):
        return str(error)
    while error is not None and not (isinstance(error, OSError) and errno.errorcode.get(error.errno) in _SURROUNDINGS):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    file = f"{error.filename}: " if error.filename else ""
    return f"{file}{os.strerror(error.errno)}; mend that and run again, which keeps all finished results."


class _CutShort(io.FileIO):
    """A file that a full disk cuts short, so that it does not turn what a job says into what it dies of."""

    def write(self, data: bytes) -> int:
        with suppress(OSError):
            super().write(data)
        return len(data)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class _Both:
    """A stream that writes to the terminal and to the log."""

    def __init__(self, terminal: TextIO, log: TextIO):
        self._terminal, self._log = terminal, log

    def write(self, text: str) -> int:
        self._log.write(text)
        return self._terminal.write(text)

    def flush(self) -> None:
        self._terminal.flush()

    def isatty(self) -> bool:
        return self._terminal.isatty()
