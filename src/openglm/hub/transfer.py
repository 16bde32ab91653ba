"""One file over HTTP, continued at the byte where it broke off.

This is not left to huggingface_hub: its transfer serves one hub of the two, gives up on a reset
connection, compares no digest, and refuses files over 50 GB without another service.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import httpx2

from openglm.errors import DownloadError
from openglm.hub.listing import Hub, HubFile, Listing
from openglm.hub.network import TransientError, check_status, lost, patiently

_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Transfer:
    """Fetches files of one listing.

    Args:
        hub: where they are.
        listing: which files there are.
        client: see `openglm.hub.network.open_client`.
        on_bytes: told how many bytes came; a negative number when bytes are thrown away.
        on_retry: told the reason and the seconds until the next try.
    """

    def __init__(
        self,
        hub: Hub,
        listing: Listing,
        client: httpx2.Client,
        on_bytes: Callable[[int], None],
        on_retry: Callable[[str, float], None],
    ) -> None:
        self.hub = hub
        self.listing = listing
        self.client = client
        self.on_bytes = on_bytes
        self.on_retry = on_retry

    def bring(self, file: HubFile, part: Path) -> None:
        """Appends what `part` lacks of `file`, until the sizes agree.

        Raises:
            DownloadError: refused, gone, of another size than listed, or failed too often.
        """
        # A link in the place of the file would lead the bytes elsewhere.
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        with os.fdopen(descriptor, "wb") as out:
            out.seek(0, os.SEEK_END)
            if out.tell() > file.size:
                self._drop(out)
            if out.tell() < file.size:
                patiently(lambda: self._go_on(file, out), self.hub.endpoint, self.on_retry)
            out.flush()
            os.fsync(out.fileno())

    def _go_on(self, file: HubFile, out: BinaryIO) -> None:
        """One request for the rest."""
        start = out.tell()
        url = self.hub.url(self.listing, file.path)
        headers = self.hub.headers() | ({"Range": f"bytes={start}-"} if start else {})
        try:
            with self.client.stream("GET", url, headers=headers) as response:
                self._accept(response, file, out)
                for chunk in response.iter_bytes():
                    if out.tell() + len(chunk) > file.size:
                        raise _other_size(file, f"more than {file.size}")
                    out.write(chunk)
                    out.flush()  # a killed process keeps all that it counted
                    self.on_bytes(len(chunk))
        except httpx2.RequestError as error:
            raise lost(error, moved=out.tell() > start) from error
        if out.tell() < file.size:
            raise TransientError("the server closed early", moved=out.tell() > start)

    def _accept(self, response: httpx2.Response, file: HubFile, out: BinaryIO) -> None:
        """Checks that the body continues what is there; drops that if the server starts anew."""
        if response.status_code == 416:  # our bytes are not the beginning of its file
            self._drop(out)
            raise TransientError("the server refused to continue")
        what = f"{self.listing.page}: {file.path}"
        check_status(response.status_code, response.headers, what, self.hub.login)
        total: str | None = response.headers.get("Content-Length")
        if response.status_code == 206:
            found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != out.tell():
                self._drop(out)
                raise TransientError("the server continued at another place")
            total = found[2]
        elif out.tell():
            self._drop(out)
        is_plain = response.headers.get("Content-Encoding", "identity") == "identity"
        if is_plain and total is not None and total.isdigit() and int(total) != file.size:
            raise _other_size(file, total)

    def _drop(self, out: BinaryIO) -> None:
        self.on_bytes(-out.tell())
        out.seek(0)
        out.truncate()


def _other_size(file: HubFile, found: str) -> DownloadError:
    return DownloadError(
        f"{file.path} has {file.size} bytes in the listing, but the server sends {found}",
        hint="the repository is changing, or a proxy is in the way: run again later",
    )
