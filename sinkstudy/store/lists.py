"""What a capture file says once per prompt or once per token: attributes of the file, each with a checksum.

HDF5 checks attributes up to 64 KB, and nothing of longer ones.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from sinkstudy.errors import DamagedFileError

LISTS = ("sets", "row_sum_errors", "output_norm", "vocabulary_ids", "vocabulary")
_CHECKSUMS = "checksums"


def write_lists(file: h5py.File, lists: Mapping[str, np.ndarray]) -> None:
    """Store all of LISTS, and their CRC-32 in that order."""
    for name in LISTS:
        file.attrs[name] = lists[name]
    file.attrs[_CHECKSUMS] = np.array([_checksum(file.attrs[name]) for name in LISTS], np.uint32)


def read_list(path: Path, file: h5py.File, name: str) -> np.ndarray:
    """One of LISTS. Raises DamagedFileError where it is not what `write_lists` stored."""
    values = file.attrs[name]
    if _checksum(values) != file.attrs[_CHECKSUMS][LISTS.index(name)]:
        raise DamagedFileError(path, f"its attribute {name!r} is altered")
    return values


def _checksum(values: np.ndarray) -> int:
    return zlib.crc32("\n".join(values).encode() if values.dtype == object else values.tobytes())
