"""`Files`: what keys upload and what is made for them: rows in the database, content in a folder.

The content of a file has the file's random id for a name, and is complete when it gets it. What the
client calls the file is kept as data. A row is written after its content and removed before it, so
a crash leaves content without a row at most; `sweep` removes that.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session
from typing_extensions import TypedDict

from openglm.errors import suggest
from openglm.home import home
from openglm.log import logger
from openglm.serve import listing
from openglm.serve.body import MEGABYTE
from openglm.serve.database import Database
from openglm.serve.errors import LATER_SECONDS, ServeError
from openglm.serve.jobs import OPEN
from openglm.serve.tables import File, Job, Key
from openglm.serve.wire import new_id

PURPOSES = ("assistants", "batch", "fine-tune", "user_data", "vision")
"""That a client may give."""
RESULT = "batch_output"
"""The purpose of what was made here."""
MOST_NAME_CHARACTERS = 255
ABANDONED_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class FileSettings:
    """Where files are kept, and how much of them.

    Args:
        folder: by default `serve/files` in the user folder. Servers that share a database share it.
        file_bytes: of one file.
        key_bytes: of all files of one key.
        key_files: files of one key.
        spare_bytes: of the disk, which uploads leave free.
    """

    folder: Path | None = None
    file_bytes: int = 100 * MEGABYTE
    key_bytes: int = 1000 * MEGABYTE
    key_files: int = 10_000
    spare_bytes: int = 500 * MEGABYTE


class Files:
    """The files of a database. Methods block.

    Args:
        database: where their rows are.
        settings: where their content is.
    """

    def __init__(self, database: Database, settings: FileSettings | None = None) -> None:
        self.settings = settings or FileSettings()
        self.folder = self.settings.folder or home() / "serve" / "files"
        self._database = database
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def add(self, key_id: str, name: str, purpose: str, content: Iterable[bytes]) -> File:
        """Stores an uploaded file.

        Raises:
            ServeError: its name or purpose is none, or there is no room for it.
        """
        check_name(name)
        if purpose not in PURPOSES:
            message = f"there is no purpose {purpose[:64]!r}: {suggest(purpose, PURPOSES)}"
            raise ServeError("invalid_field", message, "purpose")
        if shutil.disk_usage(self.folder).free < self.settings.spare_bytes:
            message = "the disk of this server is nearly full"
            raise ServeError("unavailable", message, retry_after=LATER_SECONDS)
        file = self.write(key_id, name, purpose, content, self.settings.file_bytes)
        try:
            with self._database.writing() as session:
                self._check_quota(session, file)
                session.add(file)
        except BaseException:
            self.discard(file)
            raise
        return file

    def write(
        self,
        key_id: str,
        name: str,
        purpose: str,
        content: Iterable[bytes],
        most_bytes: int | None = None,
    ) -> File:
        """Writes content to the disk; its row, which is returned, is still to be stored.

        Raises:
            ServeError: it has more than `most_bytes`.
        """
        file_id, size = new_id("file-"), 0
        part = self.folder / f".{file_id}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            with os.fdopen(os.open(part, flags, 0o600), "wb") as file:
                for piece in content:
                    size += len(piece)
                    if most_bytes is not None and size > most_bytes:
                        message = f"a file may have {most_bytes:,} bytes at most"
                        raise ServeError("too_large", message, "file")
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            part.rename(self.folder / file_id)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync_folder(self.folder)
        now = int(time.time())
        return File(
            id=file_id, key_id=key_id, name=name, purpose=purpose, size=size, created_at=now
        )

    def discard(self, file: File) -> None:
        """Removes the content of a file that has no row."""
        self.path(file).unlink(missing_ok=True)

    def path(self, file: File) -> Path:
        """Where the content of a file is."""
        assert listing.ID.fullmatch(file.id)
        return self.folder / file.id

    def get(self, key_id: str, file_id: str) -> File:
        """A file of a key; `ServeError` if there is none."""
        with self._database.reading() as session:
            return listing.find(session, File, key_id, file_id)

    def list(
        self, key_id: str, page: listing.Page, purpose: str | None = None
    ) -> tuple[Sequence[File], bool]:
        """A page of a key's files, and whether there are more."""
        if purpose not in (None, RESULT, *PURPOSES):
            return [], False
        only = [] if purpose is None else [File.purpose == purpose]
        with self._database.reading() as session:
            return listing.rows(session, File, key_id, page, *only)

    def delete(self, key_id: str, file_id: str) -> None:
        """Removes a file.

        Raises:
            ServeError: the key has none of that id, or a batch still reads it.
        """
        with self._database.writing() as session:
            file = listing.find(session, File, key_id, file_id)
            reader = Job.key_id == key_id, Job.input_id == file_id, Job.status.in_(OPEN)
            if (job_id := session.scalar(select(Job.id).where(*reader).limit(1))) is not None:
                raise ServeError("invalid", f"{file_id} is read by {job_id}; cancel that first")
            session.delete(file)
        self.discard(file)

    def let_go(self, session: Session, file: File, reader: str) -> None:
        """Removes the row of a file unless another unfinished job reads it, which will do that.

        Args:
            session: that the job ends in.
            file: that it read.
            reader: its id.
        """
        others = Job.input_id == file.id, Job.status.in_(OPEN), Job.id != reader
        if session.scalar(select(Job.id).where(*others).limit(1)) is None:
            session.execute(delete(File).where(File.id == file.id))

    def tidy(self, file: File) -> None:
        """Removes the content of a file if its row was removed."""
        with self._database.reading() as session:
            left = session.scalar(select(File.id).where(File.id == file.id))
        if left is None:
            self.discard(file)

    def sweep(self) -> None:
        """Removes content without a row that is a day old: of uploads that a crash broke off."""
        with self._database.reading() as session:
            known = set(session.scalars(select(File.id)))
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another server sweeps, too
                if path.name not in known and _age(path) > ABANDONED_SECONDS:
                    logger.info("removing %s, which no upload finished", path)
                    path.unlink()

    def _check_quota(self, session: Session, file: File) -> None:
        # The key's row is locked, so of two uploads at once the second sees the first.
        session.execute(select(Key.id).where(Key.id == file.key_id).with_for_update())
        query = select(func.count(), func.sum(File.size)).where(File.key_id == file.key_id)
        count, size = session.execute(query).one()
        settings = self.settings
        if count >= settings.key_files or (size or 0) + file.size > settings.key_bytes:
            message = (
                f"the files of this key may be {settings.key_files:,}, with {settings.key_bytes:,} "
                f"bytes together; it has {count:,} with {size or 0:,}; delete some"
            )
            raise ServeError("too_large", message, "file")


def check_name(name: str) -> None:
    """Raises `ServeError` unless a name is one of a file, without a folder.

    It is never used as a path here; but clients that download the file may do so.
    """
    is_short = 0 < len(name) <= MOST_NAME_CHARACTERS
    if not is_short or name in (".", "..") or not name.isprintable() or set(name) & {*"/\\"}:
        message = (
            f"the file's name {name[:64]!r} must have 1 to {MOST_NAME_CHARACTERS} printable "
            "characters, and no slash among them"
        )
        raise ServeError("invalid_field", message, "file")


class FileObject(TypedDict):
    """A file as clients of both dialects read it."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"]


def file_object(file: File) -> FileObject:
    """A file for clients."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": file.created_at,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
    }


def pieces(read: Callable[[int], bytes], size: int = 1 << 20) -> Iterable[bytes]:
    """What `read` gives, in pieces."""
    while piece := read(size):
        yield piece


def _sync_folder(folder: Path) -> None:
    """Makes new names in a folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _age(path: Path) -> float:
    return time.time() - path.lstat().st_mtime
