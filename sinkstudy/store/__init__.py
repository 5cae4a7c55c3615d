"""The files of the study, as docs/tables.md describes them, and the one way in which any of them gets its name."""

from sinkstudy.store.atomic import atomic_write, write_file
from sinkstudy.store.captures import open_capture, read_captures, write_capture

__all__ = ["atomic_write", "open_capture", "read_captures", "write_capture", "write_file"]
