"""ModelScope, through its REST interface: it has no client as light as the three requests it takes.

GET /api/v1/models/ORG/NAME                                       licence
GET /api/v1/models/ORG/NAME/repo/files?Revision=R&Recursive=True  paths, sizes, SHA-256
GET /api/v1/models/ORG/NAME/repo?Revision=R&FilePath=P            a file, often by redirect

Checked against the official client, modelscope-hub 0.5.1, whose own dependencies (requests,
cryptography) are larger than this module.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote, urlencode

import httpx2

from openglm.errors import DownloadError
from openglm.hub.listing import Listing, hub_file, without_doubles
from openglm.hub.network import address, check_status, lost, open_client

MASTER = "master"
"""The branch that every repository has."""
MOST_FILES = 3000
"""The server cuts a listing here without saying so."""


class ModelScope:
    """The hub, or a mirror that speaks its language.

    Args:
        endpoint: address of the server; None for `MODELSCOPE_ENDPOINT` or its older form
            `MODELSCOPE_DOMAIN`, which has no scheme, else modelscope.cn.
    """

    key = "modelscope"
    title = "ModelScope"
    login = (
        "accept the terms on its page if it has some, make a token at "
        "https://modelscope.cn/my/myaccesstoken and put it into MODELSCOPE_API_TOKEN"
    )

    def __init__(self, endpoint: str | None = None) -> None:
        domain = os.environ.get("MODELSCOPE_DOMAIN")
        named = endpoint or os.environ.get("MODELSCOPE_ENDPOINT") or (domain and _https(domain))
        self.endpoint = address(named or "https://modelscope.cn")

    def list_files(self, repository: str, revision: str | None) -> Listing:
        revision = revision or MASTER
        address = self._address(repository)
        with open_client() as client:
            about = self._ask(client, address, repository)
            query = urlencode({"Revision": revision, "Recursive": "True"})
            where = f"{repository} at revision {revision!r}"
            entries = self._ask(client, f"{address}/repo/files?{query}", where).get("Files")
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise DownloadError(f"{self.endpoint} answered without a list of files")
        if len(entries) >= MOST_FILES:
            raise DownloadError(f"{where} has {MOST_FILES} files or more, which are not all listed")
        files = [
            hub_file(entry.get("Path"), entry.get("Size"), entry.get("Sha256"))
            for entry in entries
            if entry.get("Type") != "tree"
        ]
        return Listing(
            repository,
            f"{self.endpoint}/models/{repository}",
            revision,
            str(about.get("License") or ""),
            without_doubles(files),
        )

    def url(self, listing: Listing, path: str) -> str:
        query = urlencode({"Revision": listing.revision, "FilePath": path})
        return f"{self._address(listing.repository)}/repo?{query}"

    def headers(self) -> dict[str, str]:
        token = os.environ.get("MODELSCOPE_API_TOKEN")
        return {"Cookie": f"m_session_id={token}"} if token else {}

    def _address(self, repository: str) -> str:
        return f"{self.endpoint}/api/v1/models/{quote(repository)}"

    def _ask(self, client: httpx2.Client, url: str, what: str) -> dict[str, Any]:
        """The `Data` of an answer."""
        try:
            response = client.get(url, headers=self.headers())
        except httpx2.RequestError as error:
            raise lost(error) from error
        check_status(response.status_code, response.headers, f"{self.title}: {what}", self.login)
        try:
            data = response.json()["Data"]
        except (ValueError, KeyError, TypeError) as error:
            raise DownloadError(
                f"{self.endpoint} did not answer as ModelScope does",
                hint="check --endpoint; a network may answer in its place",
            ) from error
        if not isinstance(data, dict):
            raise DownloadError(f"{self.title} has no {what}", hint="check name and revision")
        return data


def _https(domain: str) -> str:
    return domain if "://" in domain else f"https://{domain}"
