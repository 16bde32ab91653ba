"""A model from a folder, without a network: a clone, a copy, or the cache of a hub's own client."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from openglm.errors import DownloadError, refuse_pointer
from openglm.hub.listing import GIT, SHA256, HubFile

COPY_BYTES = 1 << 22
AGAIN = "it is half a download: get it again where it came from"
_BLOB = {64: SHA256, 40: GIT}
"""Length of the file names in the blobs of a Hugging Face cache -> what they are the digest of."""
_HEXADECIMAL = re.compile(r"[0-9a-f]+")


class LocalFolder:
    """A folder with the files of a checkpoint.

    Args:
        source: that folder, or a Hugging Face cache with it.
        repositories: the names under which a cache may hold it.
        on_bytes: told how many bytes were copied.

    Raises:
        DownloadError: there is no such folder, or it is a cache without this model.
    """

    def __init__(
        self, source: Path, repositories: tuple[str, ...], on_bytes: Callable[[int], None]
    ) -> None:
        if not source.is_dir():
            raise DownloadError(f"there is no folder {source}")
        cached = [source / f"models--{name.replace('/', '--')}" for name in repositories]
        inner = next((folder for folder in cached if folder.is_dir()), source)
        self.root = inner.resolve()
        self.folder = _snapshot(self.root) if (inner / "snapshots").is_dir() else self.root
        self.on_bytes = on_bytes

    def list_files(self) -> list[HubFile]:
        """Its files, with the digests that a cache has as the names of its blobs."""
        found = []
        for place, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if name != ".git"]
            for name in names:
                path = Path(place, name)
                blob = os.path.basename(os.readlink(path)) if path.is_symlink() else ""
                kind = _BLOB.get(len(blob)) if _HEXADECIMAL.fullmatch(blob) else None
                size = path.stat().st_size if path.exists() else 0
                relative = path.relative_to(self.folder).as_posix()
                found.append(HubFile(relative, size, f"{kind}:{blob}" if kind else ""))
        return found

    def check(self, file: HubFile) -> None:
        """Raises `DownloadError` for a link that leads out, a Git LFS pointer, or half a file."""
        path = self.folder / file.path
        try:
            real = path.resolve()
        except RuntimeError as error:  # a link to itself, before Python 3.13
            raise DownloadError(f"{path} is a link to itself", hint=AGAIN) from error
        if not real.is_relative_to(self.root):
            raise DownloadError(
                f"{path} is a link to {real}, outside of {self.root}",
                hint="copy the file to the place of the link",
            )
        if not real.is_file():
            raise DownloadError(f"{path} is no regular file, or a link to nothing", hint=AGAIN)
        refuse_pointer(path, DownloadError)
        if not _is_whole(path):
            raise DownloadError(f"{path} ends early, at {file.size} bytes", hint=AGAIN)

    def bring(self, file: HubFile, part: Path) -> None:
        """Copies `file` to `part`; what is there is thrown away."""
        if part.exists():
            self.on_bytes(-part.stat().st_size)
            part.unlink()
        with (self.folder / file.path).open("rb") as source, part.open("xb") as out:
            while block := source.read(COPY_BYTES):
                out.write(block)
                self.on_bytes(len(block))
            out.flush()
            os.fsync(out.fileno())


def _snapshot(root: Path) -> Path:
    """The checked-out revision of a Hugging Face cache, main if there are several."""
    snapshots = sorted((root / "snapshots").iterdir())
    main = root / "refs" / "main"
    if len(snapshots) > 1 and main.is_file():
        commit = main.read_text(encoding="utf-8").strip()
        snapshots = [folder for folder in snapshots if folder.name == commit]
    if len(snapshots) != 1:
        raise DownloadError(
            f"{root} holds {len(snapshots)} revisions", hint="name one of its snapshots folders"
        )
    return snapshots[0].resolve()


def _is_whole(path: Path) -> bool:
    """Whether a file of weights reaches its end: safetensors by its header, torch's zip by its."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="numpy"):
                return True
        except (SafetensorError, OSError):
            return False
    if path.suffix in (".bin", ".pt"):
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        return not is_zip or zipfile.is_zipfile(path)
    return True
