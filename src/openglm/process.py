"""Memory of this process, and what is left for it, as the operating system counts. No torch."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_GROUP_FILES = {
    "": ("", "memory.max", "memory.current", ""),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}
"""Of both versions of control groups, by what /proc/self/cgroup says: their folder, limit, usage,
and how counts in memory.stat begin."""
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
    found = _find(_STATUS, rf"{key}:\s+(\d+) kB")
    return None if found is None else 1024 * found


def return_freed_memory() -> None:
    """Gives memory that was freed, but kept by the C library, back to the system (glibc)."""
    if sys.platform.startswith("linux"):
        library = ctypes.CDLL(None)
        if hasattr(library, "malloc_trim"):
            library.malloc_trim(0)


def available_bytes() -> int | None:
    """Memory that this process could have besides its own; None where the system does not say.

    In a container that is what the container may have, if it is less than what the machine has.
    """
    found = _find(_MEMINFO, r"MemAvailable:\s+(\d+) kB")
    rooms = [*([] if found is None else [1024 * found]), *_rooms_of_groups()]
    return min(rooms, default=None)


def _rooms_of_groups() -> Iterator[int]:
    """What each limit on control groups leaves, those around the process's own included.

    Pages of files, which can be read again, count as free, as they do for the machine.
    """
    for line in _CGROUP.read_text().splitlines() if _CGROUP.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers not in _GROUP_FILES:
            continue
        place, limit, usage, share = _GROUP_FILES[controllers]
        root = _CGROUPS / place
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            if not folder.is_relative_to(root):
                break
            most, used = (_find(folder / name, r"(\d+)") for name in (limit, usage))
            if most is not None and used is not None:
                kinds = (rf"{share}{kind}_file (\d+)" for kind in ("active", "inactive"))
                cached = sum(_find(folder / "memory.stat", kind) or 0 for kind in kinds)
                yield max(0, most - used + cached)


def _find(file: Path, pattern: str) -> int | None:
    """The number in the line of a file that matches; None without one."""
    try:
        found = re.search(rf"^{pattern}$", file.read_text(), flags=re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) if found else None
