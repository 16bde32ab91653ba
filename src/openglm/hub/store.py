"""The folder of one model: built under another name, locked, recorded, and then renamed.

models/NAME/                   complete, with openglm-download.json
models/.partial/NAME/          being filled; finished files, and PATH.DIGEST.part
models/.locks/NAME             held while a process works on it; freed when that process dies
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from openglm.errors import DownloadError
from openglm.home import models
from openglm.hub.choose import RECORD
from openglm.hub.listing import GIT, SHA256, HubFile

BLOCK_BYTES = 1 << 22


@dataclass(slots=True)
class Record:
    """What `openglm-download.json` says of a folder.

    Args:
        hub: key of the hub; "" for a folder.
        source: address of the page, or the folder it was copied from.
        revision: the commit if the hub tells it, else branch or tag; "" for a folder.
        licence: of the weights.
        files: path -> {"size": bytes, "digest": "sha256:..."} of checked files.
    """

    hub: str = ""
    source: str = ""
    revision: str = ""
    licence: str = ""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)


class Store:
    """The places of one model in the user folder.

    Args:
        name: of the folder; safe, see `openglm.hub.target`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = models() / name
        self.partial = models() / ".partial" / name

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out; `DownloadError` if one is in."""
        path = models() / ".locks" / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(path, timeout=0):
                yield
        except Timeout as error:
            raise DownloadError(
                f"another process is downloading {self.name}", hint="wait for it, or end it"
            ) from error

    def record(self) -> Record | None:
        """The record of the complete folder; None if it is not of our making."""
        return _read(self.folder / RECORD)

    def reopen(self) -> None:
        """Makes the complete folder the partial one, to mend or renew it."""
        if self.partial.exists():
            shutil.rmtree(self.partial)
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        self.folder.rename(self.partial)

    def begin(self) -> Record:
        """Makes the partial folder if there is none; its record."""
        self.partial.mkdir(parents=True, exist_ok=True)
        return _read(self.partial / RECORD) or Record()

    def place(self, path: str, folder: Path | None = None) -> Path:
        """Where a file is in a folder, the partial one; `DownloadError` if a link leads out."""
        folder = folder or self.partial
        place = folder / path
        if place.is_symlink() or not place.resolve().is_relative_to(folder.resolve()):
            raise DownloadError(f"{place} leads out of its folder", hint="remove that link")
        return place

    def write(self, record: Record) -> None:
        """Saves the record beside the files, whole or not at all."""
        text = json.dumps(asdict(record), indent=2, ensure_ascii=False) + "\n"
        new = self.place(RECORD + ".new")
        new.write_text(text, encoding="utf-8")
        new.replace(self.partial / RECORD)

    def keep_only(self, wanted: set[str]) -> None:
        """Removes what is not `wanted` in the partial folder, such as parts of another revision."""
        for path in sorted(self.partial.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.relative_to(self.partial).as_posix() not in wanted:
                path.unlink()

    def finish(self) -> None:
        """Gives the folder its name: from here on it is complete."""
        self.partial.rename(self.folder)

    def free_bytes(self) -> int:
        """Space for more, on the disk of the models."""
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.partial.parent).free


def digest_of(path: Path, kind: str) -> str:
    """`sha256:...` of a file, or `git:...`: the SHA-1 of "blob SIZE", a zero byte, the content.

    Args:
        path: of the file.
        kind: "sha256" or "git".
    """
    if kind == GIT:
        hasher = hashlib.sha1(usedforsecurity=False)
        hasher.update(f"blob {os.path.getsize(path)}\0".encode())
    else:
        kind, hasher = SHA256, hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            hasher.update(block)
    return f"{kind}:{hasher.hexdigest()}"


def is_recorded(record: Record, file: HubFile, folder: Path) -> bool:
    """Whether this file was checked before, and is still there with its size."""
    entry = record.files.get(file.path)
    if entry is None or entry["size"] != file.size:
        return False
    place = folder / file.path
    same = entry["digest"] == file.digest
    return same and place.is_file() and place.stat().st_size == file.size


def _read(path: Path) -> Record | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        record = Record(**values)
        good = all(
            type(entry["size"]) is int and isinstance(entry["digest"], str)
            for entry in record.files.values()
        )
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None
    return record if good else None
