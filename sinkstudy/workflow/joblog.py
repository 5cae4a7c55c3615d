"""The log of one job, and what its terminal shows: one sentence for what a user can mend, else the traceback."""

import errno
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import TextIO

from sinkstudy.errors import DamagedFileError, StudyError

# What the surroundings of a job do to its files, and a user can mend. Other system errors may be faults of the code.
_SURROUNDINGS = {
    errno.ENOSPC: "no space is left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than this system allows",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "the operation is not permitted",
    errno.EIO: "the device reports an input/output error",
    errno.ESTALE: "the network file system lost the file",
}


class _Tee:
    def __init__(self, terminal: TextIO, log: TextIO):
        self._terminal, self._log = terminal, log

    def write(self, text: str) -> int:
        self._terminal.write(text)
        # A full disk must not turn what a job says into what it dies of.
        with suppress(OSError):
            self._log.write(text)
        return len(text)

    def flush(self) -> None:
        self._terminal.flush()
        with suppress(OSError):
            self._log.flush()

    def isatty(self) -> bool:
        return self._terminal.isatty()


@contextmanager
def job_log(path: str | Path) -> Iterator[None]:
    """Copy stderr to the log file, with the traceback of whatever ends the job.

    What a user can mend (a StudyError, a full or unwritable disk) ends the process with status 1 and one sentence on
    the terminal. A damaged result is renamed to `*.damaged`, so that the next run makes it anew.
    """
    terminal, sentence = sys.stderr, None
    try:
        log = Path(path).open("w", encoding="utf-8")  # noqa: SIM115 - closed below, where a full disk is expected
    except OSError as error:
        print(f"error: {_of_surroundings(error, path)}", file=terminal)
        raise SystemExit(1) from None
    try:
        with redirect_stderr(_Tee(terminal, log)), _ignored_errors_to(log):
            yield
    except BaseException as error:
        with suppress(OSError):
            traceback.print_exc(file=log)
        if isinstance(error, DamagedFileError):
            sentence = _set_aside(error)
        elif isinstance(error, StudyError):
            sentence = str(error)
        elif isinstance(error, OSError) and error.errno in _SURROUNDINGS:
            sentence = _of_surroundings(error, error.filename)
        else:
            raise
        print(f"error: {sentence}", file=terminal)
        raise SystemExit(1) from None
    finally:
        with suppress(OSError):
            log.close()


@contextmanager
def _ignored_errors_to(log: TextIO) -> Iterator[None]:
    """Errors that Python prints and ignores, such as h5py's while it lets go of a file on a full disk."""
    hooks = sys.excepthook, sys.unraisablehook

    def note(*error: object) -> None:
        with suppress(OSError):
            traceback.print_exception(error[-2] if len(error) == 3 else error[0].exc_value, file=log)

    sys.excepthook = sys.unraisablehook = note
    try:
        yield
    finally:
        sys.excepthook, sys.unraisablehook = hooks


def _set_aside(error: DamagedFileError) -> str:
    """Rename a damaged result, so that Snakemake finds it missing. Nothing is deleted: it may be of use to someone."""
    kept = error.path.with_name(error.path.name + ".damaged")
    try:
        error.path.replace(kept)
    except OSError:
        return str(error)
    return f"{error.path}: {error.what}; it is now called {kept.name}, and the next run makes it anew."


def _of_surroundings(error: OSError, path: str | Path | None) -> str:
    where = f"{path}: " if path else ""
    why = _SURROUNDINGS.get(error.errno, error.strerror)
    return f"{where}{why}; mend that and run again, which keeps all finished results."
