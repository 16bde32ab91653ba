"""Files that only their owner may read: the database and the master key."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from openglm.errors import ConfigError

OTHERS = stat.S_IRWXG | stat.S_IRWXO


def create_private(path: Path, content: bytes = b"") -> None:
    """Writes a file of mode 0600 if there is none; an existing one is kept as it is.

    It gets its name complete, so of two processes that start at once both read the same content.

    Raises:
        ConfigError: the folder is missing, or the file that is there may be read by others.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {path.parent}", hint="make it, or name another file")
    if not path.exists():
        descriptor, new = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            with suppress(FileExistsError):  # another process was faster
                os.link(new, path)
        finally:
            os.unlink(new)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & OTHERS:
        raise ConfigError(
            f"{path} has mode {mode:04o}: others on this machine may read it",
            hint=f"chmod 600 {path}",
        )
