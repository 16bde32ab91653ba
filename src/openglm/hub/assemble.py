"""Filling the folder of one model: show, check the room, bring, check, name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from openglm.errors import DownloadError
from openglm.hub.choose import RECORD, Choice, is_weights, missing_shards
from openglm.hub.listing import SHA256, HubFile
from openglm.hub.store import Record, Store, digest_of, is_recorded
from openglm.hub.target import Target

DOWNLOADED, IMPORTED, ALREADY_HERE = "downloaded", "imported", "already here"


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done, known before the first byte of a file.

    Args:
        target: what was asked for.
        source: the page of the repository, or the folder.
        revision: which commit, branch or tag; "" for a folder.
        licence: as the hub has it; "" if it says nothing.
        folder: where the model will be.
        files: what is needed.
        left_out: reason -> paths that are not.
        here_bytes: what an earlier run left.
        free_bytes: room on the disk.
    """

    target: Target
    source: str
    revision: str
    licence: str
    folder: Path
    files: tuple[HubFile, ...]
    left_out: dict[str, list[str]]
    here_bytes: int
    free_bytes: int

    @property
    def total_bytes(self) -> int:
        """Of all needed files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Report:
    """What was done.

    Args:
        status: "downloaded", "imported" or "already here".
        folder: of the model.
        record: of its files; None for a folder that somebody else put there.
        brought_bytes: what this run brought.
    """

    status: str
    folder: Path
    record: Record | None
    brought_bytes: int = 0


class Watcher(Protocol):
    """Whoever shows the progress."""

    def plan(self, plan: Plan) -> None:
        """Before the first byte."""

    def bytes(self, count: int) -> None:
        """More bytes are here; fewer, if negative."""

    def retrying(self, reason: str, seconds: float) -> None:
        """A request failed and will be made again."""

    def checking(self, path: str) -> None:
        """A file is read to compute its digest."""


class Assembly:
    """The partial folder of one model on its way to be a complete one.

    Args:
        store: its places.
        target: what was asked for.
        record: where the files come from; what an earlier run recorded is added.
        choice: which files.
        watcher: told what happens.
        hub_licence: what the hub says of it.
    """

    def __init__(
        self,
        store: Store,
        target: Target,
        record: Record,
        choice: Choice,
        watcher: Watcher,
        hub_licence: str = "",
    ) -> None:
        self.store = store
        self.target = target
        self.files = choice.files
        self.left_out = choice.left_out
        self.hub_licence = hub_licence
        self.watcher = watcher
        self.record = record
        self.record.files = store.begin().files

    def run(self, bring: Callable[[HubFile, Path], None], status: str) -> Report:
        """Brings all files and gives the folder its name.

        Args:
            bring: puts the bytes of a file into its part file.
            status: for the report.

        Raises:
            DownloadError: too little room, an incomplete index, or a file that is not as listed.
        """
        names = {name for file in self.files for name in (file.path, file.partial_name)}
        self.store.keep_only(names | {RECORD})
        self._settle()
        plan = self._plan()
        self.watcher.plan(plan)
        needed = plan.total_bytes - plan.here_bytes
        if needed > plan.free_bytes:
            raise DownloadError(
                f"{needed:,} bytes are needed and {plan.free_bytes:,} are free "
                f"on the disk of {self.store.folder.parent}",
                hint="make room, or move the user folder with OPENGLM_HOME",
            )
        self._bring_all(bring, [file for file in self.files if not is_weights(file.path)])
        self._check_indexes()
        self._bring_all(bring, [file for file in self.files if is_weights(file.path)])
        present = {file.path for file in self.files}
        self.record.files = {p: e for p, e in self.record.files.items() if p in present}
        self.store.write(self.record)
        self.store.finish()
        return Report(status, self.store.folder, self.record, needed)

    def _settle(self) -> None:
        """Keeps or removes whole files without a fitting record.

        They are of another revision, or the process died just before they were recorded.
        """
        for file in self.files:
            place = self.store.place(file.path)
            if not place.exists() or is_recorded(self.record, file, self.store.partial):
                continue
            if file.digest and digest_of(place, file.digest.partition(":")[0]) == file.digest:
                place.replace(self.store.place(file.partial_name))
            else:
                place.unlink()

    def _plan(self) -> Plan:
        here = 0
        for file in self.files:
            places = (self.store.place(name) for name in (file.path, file.partial_name))
            sizes = [place.stat().st_size for place in places if place.is_file()]
            here += min(sum(sizes), file.size)
        return Plan(
            self.target,
            self.record.source,
            self.record.revision,
            self.hub_licence,
            self.store.folder,
            self.files,
            self.left_out,
            here,
            self.store.free_bytes(),
        )

    def _bring_all(self, bring: Callable[[HubFile, Path], None], files: Sequence[HubFile]) -> None:
        for file in files:
            if is_recorded(self.record, file, self.store.partial):
                continue
            part = self.store.place(file.partial_name)
            part.parent.mkdir(parents=True, exist_ok=True)
            bring(file, part)
            digest = self._checked(file, part)
            part.replace(self.store.place(file.path))
            self.record.files[file.path] = {"size": file.size, "digest": digest}
            self.store.write(self.record)

    def _checked(self, file: HubFile, part: Path) -> str:
        """The digest of a part that has all bytes; a part that is not the file is removed."""
        self.watcher.checking(file.path)
        digest = digest_of(part, file.digest.partition(":")[0] or SHA256)
        if digest != (file.digest or digest) or part.stat().st_size != file.size:
            self.watcher.bytes(-part.stat().st_size)
            part.unlink()
            raise DownloadError(
                f"{file.path} is not what the hub lists: {digest} instead of {file.digest}",
                hint="it was removed; run again, and if this repeats, use another --endpoint or "
                "--hub: something on the way changes files",
            )
        return digest

    def _check_indexes(self) -> None:
        """Refuses an index that names shards which are not among the files."""
        present = {file.path for file in self.files}
        for path in present:
            if not path.endswith(".index.json"):
                continue
            try:
                index = json.loads(self.store.place(path).read_text(encoding="utf-8"))
            except ValueError as error:
                raise DownloadError(f"{path} of {self.record.source} is not JSON") from error
            weight_map = index.get("weight_map") if isinstance(index, dict) else None
            lost = missing_shards(weight_map, present, self.record.source)
            if lost:
                raise DownloadError(
                    f"{self.record.source} lacks {len(lost)} files that its index names: "
                    f"{', '.join(lost[:8])}",
                    hint="the repository is incomplete: try another --revision or --hub",
                )
