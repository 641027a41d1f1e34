"""Memory of large tensors on a CPU: freed pages are kept, so that the next step need not ask for them again.

The C library of Linux gives every allocation above some megabytes pages of its own and returns them when it is freed.
Networks over all pairs of vertices make hundreds of such tensors a step; clearing new pages for them can take more time
than the arithmetic.
"""

from __future__ import annotations

import ctypes
import platform

__all__ = ["keep_freed_memory"]

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # names of the settings, from malloc.h
TOP_PAD_BYTES = 64 * 2**20


def keep_freed_memory() -> bool:
    """Lets this process keep what its tensors free, from here on; False where there is no such setting.

    The process then holds its peak until it ends, and fragments may raise the peak. Nothing else changes.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, TOP_PAD_BYTES))
    return all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in settings)
