"""The steps of `glm download`: look what is here, ask the hub, choose, assemble."""

from __future__ import annotations

import re
from pathlib import Path

from openglm.errors import DownloadError
from openglm.hub.assemble import ALREADY_HERE, DOWNLOADED, IMPORTED, Assembly, Report, Watcher
from openglm.hub.choose import choose, is_weights
from openglm.hub.listing import Hub, HubFile, Listing
from openglm.hub.local import LocalFolder
from openglm.hub.network import open_client, patiently
from openglm.hub.store import Record, Store, digest_of, is_recorded
from openglm.hub.target import Target
from openglm.hub.transfer import Transfer
from openglm.registry import RENAMED

LISTING_RETRIES = 2
"""Fewer than for files: who has no network at all should hear of it soon."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


def download(
    target: Target,
    hub: Hub,
    watcher: Watcher,
    revision: str | None = None,
    verify: bool = False,
) -> Report:
    """Fetches a checkpoint into the user folder, or goes on with one.

    Args:
        target: see `find_target`.
        hub: of the target.
        watcher: told what happens.
        revision: commit, branch or tag; None for that of the target, or whatever is already here.
        verify: read a complete folder again and mend what is damaged.

    Raises:
        DownloadError: it cannot be had; what was fetched stays for the next run.
    """
    store = Store(target.name)
    with store.locked():
        record = store.record()
        if store.folder.is_dir():
            if record is None:
                return Report(ALREADY_HERE, store.folder, None)
            whole = _is_whole(store, record, watcher, verify)
            if whole and (revision is None or _is_commit(revision, record)):
                return Report(ALREADY_HERE, store.folder, record)
            if not whole and not record.hub:
                raise DownloadError(
                    f"{store.folder} was imported from {record.source}, and files of it are "
                    "missing or were damaged",
                    hint=f"glm download {target.name} --from {record.source}",
                )
        same = record.revision if record is not None and record.hub == hub.key else None
        asked = revision or same or target.revision
        listing = _listing(target, hub, asked, watcher)
        where = f"{hub.title}: {listing.repository}"
        choice = choose(listing.files, where)
        unchecked = [f.path for f in choice.files if is_weights(f.path) and not f.digest]
        if unchecked:
            raise DownloadError(f"{where} has no checksum for {', '.join(unchecked)}")
        if record is not None:
            if all(is_recorded(record, file, store.folder) for file in choice.files):
                return Report(ALREADY_HERE, store.folder, record)
            store.reopen()  # only now, with a hub that answers: the model loses its name
        licence = target.licence or listing.licence
        record = Record(hub.key, listing.page, listing.revision, licence)
        with open_client() as client:
            transfer = Transfer(hub, listing, client, watcher.bytes, watcher.retrying)
            work = Assembly(store, target, record, choice, watcher, listing.licence)
            return work.run(transfer.bring, DOWNLOADED)


def import_folder(target: Target, source: Path, watcher: Watcher, verify: bool = False) -> Report:
    """Copies a checkpoint from a folder into the user folder, checked as a download is.

    Args:
        target: see `find_target`.
        source: a folder with the files, or a Hugging Face cache.
        watcher: told what happens.
        verify: read a complete folder again and mend what is damaged.

    Raises:
        DownloadError: the folder lacks files, or has pointers, half files or links that lead out.
    """
    store = Store(target.name)
    with store.locked():
        if store.folder.is_dir():
            record = store.record()
            if record is None or _is_whole(store, record, watcher, verify):
                return Report(ALREADY_HERE, store.folder, record)
            store.reopen()
        local = LocalFolder(source, _names(target), watcher.bytes)
        choice = choose(local.list_files(), str(local.folder))
        for file in choice.files:
            local.check(file)
        record = Record(source=str(local.folder), licence=target.licence)
        work = Assembly(store, target, record, choice, watcher)
        return work.run(local.bring, IMPORTED)


def _listing(target: Target, hub: Hub, revision: str | None, watcher: Watcher) -> Listing:
    try:
        return patiently(
            lambda: hub.list_files(target.repository, revision),
            hub.endpoint,
            watcher.retrying,
            LISTING_RETRIES,
        )
    except DownloadError as error:
        if not target.by_hand:
            raise
        raise DownloadError(error.message, hint=f"{error.hint}; or {target.by_hand}") from error


def _names(target: Target) -> tuple[str, ...]:
    """The repository, and its name before the organisation was renamed."""
    organisation, _, name = target.repository.partition("/")
    former = [old for old, new in RENAMED.items() if new == organisation]
    return (target.repository, *(f"{old.upper()}/{name}" for old in former))


def _is_whole(store: Store, record: Record, watcher: Watcher, verify: bool) -> bool:
    """Whether all recorded files are there; those that are damaged are removed."""
    whole = True
    for path, entry in record.files.items():
        place, digest = store.place(path, store.folder), entry["digest"]
        good = is_recorded(record, HubFile(path, entry["size"], digest), store.folder)
        if good and verify:
            watcher.checking(path)
            good = digest_of(place, digest.partition(":")[0]) == digest
        if not good:
            place.unlink(missing_ok=True)
            whole = False
    return whole


def _is_commit(revision: str, record: Record) -> bool:
    """Whether it is the recorded commit. A branch or tag may have moved: the hub is asked."""
    return revision == record.revision and _COMMIT.fullmatch(revision) is not None
