"""The log of one job: what it writes to stderr, and its traceback; on the terminal a user's mistake is one sentence."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TextIO

from sinkstudy.errors import StudyError


class _Tee:
    def __init__(self, *streams: TextIO):
        self._streams = streams

    def write(self, text: str) -> int:
        for stream in self._streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self._streams:
            stream.flush()

    def isatty(self) -> bool:
        return self._streams[0].isatty()


@contextmanager
def job_log(path: str | Path) -> Iterator[None]:
    """Copy stderr to the log file; end the process with status 1 and one sentence on a StudyError."""
    terminal = sys.stderr
    with Path(path).open("w", encoding="utf-8") as log, redirect_stderr(_Tee(terminal, log)):
        try:
            yield
        except StudyError as error:
            traceback.print_exc(file=log)
            print(f"error: {error}", file=terminal)
            raise SystemExit(1) from None
        except BaseException:
            traceback.print_exc(file=log)
            raise
