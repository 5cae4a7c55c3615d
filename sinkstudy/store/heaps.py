"""Checksums of the one part of an HDF5 file that has none: its global heaps, where text of any length lies.

Headers and datasets of a capture are checked by HDF5 itself. A flipped bit in a global heap would rename a prompt set
in silence, or send the library into a loop without end; so heaps are checked before anything in them is read.
Layout of a heap: HDF5 File Format Specification 3.0, III.E.
"""

import mmap
import zlib
from pathlib import Path

import h5py
import numpy as np

from sinkstudy.errors import DamagedFileError

_SIGNATURE = b"GCOL\x01\x00\x00\x00"
_ATTRIBUTE = "text_heaps"


def seal_heaps(path: Path) -> None:
    """Store offset, size and CRC-32 of every heap of a closed file as its attribute `text_heaps`, (heap, 3) int64."""
    heaps = []
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(_SIGNATURE)
        while at >= 0:
            size = int.from_bytes(content[at + 8 : at + 16], "little")
            if at + size <= len(content):  # else it is a chunk of numbers that happens to look like a heap
                heaps.append((at, size, zlib.crc32(content[at : at + size])))
            at = content.find(_SIGNATURE, at + 1)
    with h5py.File(path, "r+") as file:
        file.attrs[_ATTRIBUTE] = np.array(heaps, np.int64).reshape(-1, 3)


def check_heaps(path: Path, file: h5py.File) -> None:
    """Raise DamagedFileError when a heap is not what `seal_heaps` saw; KeyError when the file was never sealed."""
    with path.open("rb") as stream:
        for offset, size, checksum in file.attrs[_ATTRIBUTE].tolist():
            stream.seek(offset)
            if zlib.crc32(stream.read(size)) != checksum:
                raise DamagedFileError(path, "the text in it is altered")
