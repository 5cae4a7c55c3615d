"""The file under an HDF5 file that is being written, so that a full disk is an error and not a crash.

HDF5 ends the process by a segmentation fault when it cannot write what is left at closing. Here it
never learns of the failure: the first error is kept, later writes go nowhere, and the writer raises the error itself.
"""

from pathlib import Path


class Disk:
    """What `h5py.File` needs of a file object; `error` is the first OSError of a write, or None."""

    def __init__(self, path: Path):
        self._file = path.open("w+b", buffering=0)
        self._path = path
        self.error: OSError | None = None

    def write(self, data: memoryview) -> int:
        left = memoryview(data)
        try:
            while left and self.error is None:
                left = left[self._file.write(left) :]
        except OSError as error:
            self.error = OSError(error.errno, error.strerror, str(self._path))
        return len(data)

    def truncate(self, size: int) -> int:
        try:
            return size if self.error else self._file.truncate(size)
        except OSError as error:
            self.error = OSError(error.errno, error.strerror, str(self._path))
            return size

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def readinto(self, buffer: memoryview) -> int:
        return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        """Nothing waits: the file is not buffered."""

    def close(self) -> None:
        self._file.close()
