"""The file under an HDF5 file that is being written, so that a full disk is an error and not a crash.

HDF5 ends the process by a segmentation fault when it cannot write what is left at closing. Here it
never learns of the failure: the first error is kept, later writes go nowhere, and the writer raises the error itself.
"""

import io
from pathlib import Path

_HELD_BYTES = 1 << 25


class Disk:
    """What `h5py.File` needs of a file object; `error` is the first OSError of a write, or None.

    HDF5 writes a few bytes at a time, so the file is held in memory until it has _HELD_BYTES, or is closed.
    """

    def __init__(self, path: Path):
        self._file = path.open("w+b", buffering=0)
        self._path = path
        self._stream: io.BytesIO | io.FileIO = io.BytesIO()  # then self._file
        self.error: OSError | None = None

    def write(self, data: memoryview) -> int:
        if self._stream is self._file:
            self._put(data)
        else:
            self._stream.write(data)
            if self._stream.tell() > _HELD_BYTES:
                self._let_go()
        return len(data)

    def put(self, offset: int, values: memoryview) -> None:
        """Write an array at a place HDF5 has set aside."""
        self._stream.seek(offset)
        self.write(memoryview(values).cast("B"))

    def truncate(self, size: int) -> int:
        if self._stream is not self._file:
            self._let_go()  # HDF5 does this last; memory would not grow by it as a file does
        try:
            return size if self.error else self._file.truncate(size)
        except OSError as error:
            self._note(error)
            return size

    def read(self, size: int = -1) -> bytes:
        return self._stream.read(size)

    def readinto(self, buffer: memoryview) -> int:
        return self._stream.readinto(buffer)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def flush(self) -> None:
        """What is held is put on disk at closing, the rest already is."""

    def close(self) -> None:
        if self._stream is not self._file:
            self._let_go()
        self._file.close()

    def _let_go(self) -> None:
        """Put what was held in memory on disk and go on there."""
        held, self._stream = self._stream, self._file
        self._put(held.getbuffer())
        self._file.seek(held.tell())

    def _put(self, data: memoryview) -> None:
        left = memoryview(data)
        try:
            while left and self.error is None:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._note(error)

    def _note(self, error: OSError) -> None:
        self.error = OSError(error.errno, error.strerror, str(self._path))
