"""What becomes of freed memory, which glibc would decide from moment to moment; other C libraries are left alone."""

import ctypes
from contextlib import suppress

# glibc's malloc.h defines these two parameters of mallopt.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Have this process keep what it frees, up to blocks of 1 GiB, for the next pass, which needs as much again.

    By default large blocks go back to the system when they happen to lie at the end, and the next pass waits for the
    system to clear new ones.
    """
    _set(_M_TRIM_THRESHOLD, 1 << 30)
    _set(_M_MMAP_THRESHOLD, 1 << 30)


def return_freed_memory() -> None:
    """Have this process give freed blocks of 4 MiB and more back to the system.

    By default blocks of up to 32 MiB stay with the process for reuse. Weights that come and go, between results that
    stay, tear so many holes in what it keeps that it grows with every layer.
    """
    _set(_M_MMAP_THRESHOLD, 4 << 20)


def _set(parameter: int, size: int) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(parameter, size)
