"""Memory of this process, as the operating system counts it. No torch."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""What to write there to reset the peak (proc(5), Linux 4.0)."""


def resident_bytes() -> int:
    """Physical memory in use now; the peak where only that is known."""
    return _status("VmRSS") or peak_bytes()


def peak_bytes() -> int:
    """Largest physical memory in use so far, or since `reset_peak`."""
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak() -> bool:
    """Starts the peak anew; False where the system cannot."""
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _status(key: str) -> int | None:
    if not _STATUS.is_file():
        return None
    found = re.search(rf"^{key}:\s+(\d+) kB$", _STATUS.read_text(), flags=re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def return_freed_memory() -> None:
    """Gives memory that was freed, but kept by the C library, back to the system (glibc)."""
    if sys.platform.startswith("linux"):
        library = ctypes.CDLL(None)
        if hasattr(library, "malloc_trim"):
            library.malloc_trim(0)


def available_bytes() -> int | None:
    """Memory that new processes could have; None where the system does not say."""
    file = Path("/proc/meminfo")
    found = (
        re.search(r"^MemAvailable:\s+(\d+) kB$", file.read_text(), re.M) if file.is_file() else None
    )
    return int(found.group(1)) * 1024 if found else None
