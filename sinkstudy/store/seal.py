"""The seal of a capture file: a checksum of all its bytes but the packed chunks, which carry one of their own.

HDF5 checks headers and packed chunks, but neither plain arrays nor text nor long attributes: a flipped bit there would
rename a prompt set in silence, or send the library into a loop without end. The seal lies behind the end of HDF5's own
content, where no HDF5 reader looks, and a program that changes the file through HDF5 cuts it off.

Layout, little-endian: offset and size of every packed chunk (int64 each), their number (uint64), the CRC-32 of all
that is not packed and of these ranges (uint64), and eight bytes of signature.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from zlib_ng import zlib_ng

from sinkstudy.errors import DamagedFileError

_SIGNATURE = b"sinkseal"
_END = struct.Struct("<QQ8s")
_BYTES_AT_ONCE = 1 << 20


def seal(path: Path, packed: list[tuple[int, int]]) -> None:
    """Close a finished file with its seal and put it on disk; `packed`: offset and size of every packed chunk."""
    ranges = np.array(sorted(packed), "<i8").reshape(-1, 2)
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        checksum = _checksum(file.fileno(), size, ranges)
        file.write(ranges.tobytes() + _END.pack(len(ranges), checksum, _SIGNATURE))
        file.flush()
        os.fsync(file.fileno())


def check_seal(path: Path, handle: int) -> None:
    """Raise DamagedFileError when an open file (at `path`) is not what was sealed, or was never sealed."""
    size = os.fstat(handle).st_size - _END.size
    count, checksum, signature = _END.unpack(_read(handle, max(0, size), _END.size).ljust(_END.size, b"\0"))
    size -= 16 * count
    if signature != _SIGNATURE or size < 0:
        raise DamagedFileError(path, "is not a complete capture, or was changed since it was made")
    ranges = np.frombuffer(_read(handle, size, 16 * count), "<i8").reshape(-1, 2)
    if _checksum(handle, size, ranges) != checksum:
        raise DamagedFileError(path, "is altered")


def _checksum(handle: int, size: int, packed: np.ndarray) -> int:
    checksum = zlib_ng.crc32(packed.tobytes())
    at = 0
    for offset, length in [*packed.tolist(), (size, 0)]:
        for part in _parts(handle, at, offset):
            checksum = zlib_ng.crc32(part, checksum)
        at = offset + length
    return checksum


def _parts(handle: int, start: int, stop: int) -> Iterator[bytes]:
    for at in range(start, stop, _BYTES_AT_ONCE):
        yield _read(handle, at, min(_BYTES_AT_ONCE, stop - at))


def _read(handle: int, start: int, length: int) -> bytes:
    return os.pread(handle, length, start)
