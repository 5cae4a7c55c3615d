"""HDF5 files whose damage shows: HDF5 checks its headers by itself, and every dataset is given fletcher32. Text of
variable length would have no checksum, so there is none but the labels of axes."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

# HDF5 1.10's format is the oldest that checksums all headers, and the newest that its command-line tools mostly read.
_LIBVER = ("v110", "v110")


class Disk(io.FileIO):
    """The file under an HDF5 file. HDF5 ends the process by a segmentation fault when it cannot write what is left at
    closing, so it never learns of a full disk: the first error is kept for the writer to raise."""

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


@contextmanager
def new_file(path: Path) -> Iterator[tuple[h5py.File, Disk]]:
    """An HDF5 file to fill, at a name from `atomic_write`. Raises OSError at the end if it did not reach the disk."""
    with Disk(path, "w+") as disk:
        with h5py.File(disk, "w", libver=_LIBVER, track_order=True) as file:
            yield file, disk
        if disk.error:
            raise disk.error


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
