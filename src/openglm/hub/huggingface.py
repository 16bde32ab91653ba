"""Hugging Face, through its own library: listing, addresses, login."""

from __future__ import annotations

import os
from typing import Any

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from openglm.errors import DownloadError
from openglm.hub.listing import Listing, hub_file, without_doubles
from openglm.hub.network import address, check_status, lost

LISTING_TIMEOUT_S = 30.0


class HuggingFace:
    """The hub, or a mirror that speaks its language.

    Args:
        endpoint: address of the server; None for `HF_ENDPOINT`, else huggingface.co.
    """

    key = "huggingface"
    title = "Hugging Face"
    login = (
        "accept the terms on its page if it has some, make a token at "
        "https://huggingface.co/settings/tokens and put it into HF_TOKEN"
    )

    def __init__(self, endpoint: str | None = None) -> None:
        self.endpoint = address(
            endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        )

    def list_files(self, repository: str, revision: str | None) -> Listing:
        where = f"{self.endpoint}/{repository}"
        try:
            info = HfApi(endpoint=self.endpoint).model_info(
                repository, revision=revision, files_metadata=True, timeout=LISTING_TIMEOUT_S
            )
        except OfflineModeIsEnabled as error:
            raise DownloadError(
                "HF_HUB_OFFLINE is set", hint="unset it, or import a folder with --from DIR"
            ) from error
        except GatedRepoError as error:
            raise DownloadError(f"{where} is gated: access refused", hint=self.login) from error
        except RepositoryNotFoundError as error:
            # The server also says so of private repositories, and of all without a login.
            raise DownloadError(
                f"{where} does not exist, or is private", hint=f"check the name; {self.login}"
            ) from error
        except RevisionNotFoundError as error:
            raise DownloadError(
                f"{where} has no revision {revision!r}", hint=f"see {where}/commits/main"
            ) from error
        except HfHubHTTPError as error:
            check_status(error.response.status_code, error.response.headers, where, self.login)
            raise
        except httpx2.RequestError as error:
            raise lost(error) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DownloadError(
                f"{self.endpoint} did not answer as Hugging Face does: {error}",
                hint="check --endpoint and HF_ENDPOINT; a network may answer in its place",
            ) from error
        files = [
            hub_file(entry.rfilename, entry.size, entry.lfs and entry.lfs.sha256, entry.blob_id)
            for entry in info.siblings or []
        ]
        return Listing(
            info.id,
            f"{self.endpoint}/{info.id}",
            info.sha or revision or "main",
            _licence(info.card_data),
            without_doubles(files),
        )

    def url(self, listing: Listing, path: str) -> str:
        return hf_hub_url(
            listing.repository, path, revision=listing.revision, endpoint=self.endpoint
        )

    def headers(self) -> dict[str, str]:
        return build_hf_headers(library_name="openglm")


def _licence(card: Any) -> str:
    """`license` of the model card; of a licence called "other", its name."""
    values = card.to_dict() if card is not None else {}
    named = values.get("license_name") if values.get("license") == "other" else None
    return str(named or values.get("license") or "")
