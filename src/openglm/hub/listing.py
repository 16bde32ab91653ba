"""What a hub says of a repository, checked: names, sizes and digests are data of a stranger."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from openglm.errors import DownloadError

SHA256, GIT = "sha256", "git"
_DIGESTS = {SHA256: re.compile(r"[0-9a-f]{64}"), GIT: re.compile(r"[0-9a-f]{40}")}
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository or of a folder.

    Args:
        path: relative, with "/", never leaving the folder; see `hub_file`.
        size: bytes.
        digest: "sha256:..." of the content, "git:..." as Git hashes it, or "" if none is known.
    """

    path: str
    size: int
    digest: str = ""

    @property
    def partial_name(self) -> str:
        """Its path while it is incomplete; other content under the same path has another one."""
        return f"{self.path}.{self.digest.partition(':')[2][:16] or self.size}.part"


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one revision.

    Args:
        repository: its name on the hub, after redirects.
        page: the address of its page.
        revision: the commit if the hub tells it, else the branch or tag.
        licence: as the hub has it; "" if it says nothing.
        files: all of them.
    """

    repository: str
    page: str
    revision: str
    licence: str
    files: tuple[HubFile, ...]


class Hub(Protocol):
    """A place that has repositories of files."""

    key: str
    """`huggingface` or `modelscope`, as in presets and on the command line."""
    title: str
    endpoint: str
    """The address of its server, without a final slash."""
    login: str
    """How to log in, in words."""

    def list_files(self, repository: str, revision: str | None) -> Listing:
        """Asks the server; `DownloadError` if it does not answer or not with a repository."""

    def url(self, listing: Listing, path: str) -> str:
        """The address of a file."""

    def headers(self) -> dict[str, str]:
        """What to send with every request for a file, the login among it."""


def hub_file(path: object, size: object, sha256: object = None, blob: object = None) -> HubFile:
    """A `HubFile` from the words of a server.

    Args:
        path: of the file.
        size: in bytes.
        sha256: hexadecimal, for Git LFS files.
        blob: the hexadecimal hash of the Git object, for the others.

    Raises:
        DownloadError: a path that could leave the folder, or a size or digest that is none.
    """
    if not isinstance(path, str) or not _is_safe(path):
        raise DownloadError(
            f"the listing has a file called {path!r}, which could leave the folder of the model",
            hint="nothing was written; report the repository to its hub",
        )
    if type(size) is not int or size < 0:
        raise DownloadError(f"the listing gives {path} the size {size!r}")
    for kind, value in ((SHA256, sha256), (GIT, blob)):
        if value:
            digest = str(value).lower()
            if not _DIGESTS[kind].fullmatch(digest):
                raise DownloadError(f"the listing gives {path} the {kind} digest {value!r}")
            return HubFile(path, size, f"{kind}:{digest}")
    return HubFile(path, size)


def without_doubles(files: Iterable[HubFile]) -> tuple[HubFile, ...]:
    """The files; `DownloadError` if two have one path."""
    found = tuple(files)
    for path, count in Counter(file.path for file in found).items():
        if count > 1:
            raise DownloadError(f"the listing has {path} {count} times")
    return found


def _is_safe(path: str) -> bool:
    parts = path.split("/")
    return not _FORBIDDEN.search(path) and all(
        0 < len(part) <= 200 and part.strip(". ") and not part.startswith("~") for part in parts
    )
