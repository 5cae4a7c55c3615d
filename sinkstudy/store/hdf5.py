"""HDF5 files, written so that each is there whole or not at all, and that damage shows.

HDF5 checks its headers by itself, and every dataset has fletcher32. Text of variable length would have no checksum, so
there is none but the labels of axes.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from sinkstudy.store.atomic import atomic_write

# HDF5 1.10's format is the oldest that checksums all headers, and the newest that its command-line tools mostly read.
_LIBVER = ("v110", "v110")


class Disk(io.FileIO):
    """The file under an HDF5 file. HDF5 ends the process by a segmentation fault when it cannot write what is left at
    closing, so it never learns of a full disk: the first error is kept for `check` to raise."""

    error: OSError | None = None

    def write(self, data: memoryview) -> int:
        left = memoryview(data)
        with self._noting():
            while left:
                left = left[super().write(left) :]
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        with self._noting():
            super().truncate(size)
        return size

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error

    def check(self) -> None:
        if self.error:
            raise self.error


@contextmanager
def new_file(path: Path, read_back: Callable[[Path], object]) -> Iterator[tuple[h5py.File, Disk]]:
    """An HDF5 file to fill, which becomes `path` at the end unless `read_back` raises. See `atomic_write`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        with Disk(temporary, "w+") as disk:
            with h5py.File(disk, "w", libver=_LIBVER, track_order=True) as file:
                yield file, disk
            disk.check()
        read_back(temporary)


def describe(item: h5py.Group, attributes: Mapping[str, object]) -> None:
    """Set attributes, but those that are None."""
    for name, value in attributes.items():
        if value is not None:
            item.attrs[name] = fixed_length(value) if isinstance(value, str | tuple) else value


def fixed_length(words: str | tuple[str, ...] | list[str]) -> np.ndarray:
    """Text as UTF-8 of one length, shorter words filled up."""
    encoded = np.char.encode(words, "utf-8")
    return encoded.astype(h5py.string_dtype("utf-8", max(1, encoded.itemsize)))


def as_text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
