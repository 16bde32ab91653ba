"""Keeping freed memory: on Linux, one setting makes CPU training of small models faster.

By default glibc gives every large freed block back to the kernel, and the next step pays for the
same pages again with page faults. The settings below make it keep them.
"""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt(3).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory for the life of the process; False where it is not glibc."""
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "gnu_get_libc_version"):
        return False
    no_trim, pad_bytes = 2**31 - 1, 64 << 20
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, no_trim), (M_TOP_PAD, pad_bytes))
    return all(library.mallopt(name, value) == 1 for name, value in settings)
