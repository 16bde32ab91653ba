"""Files that keys upload: whose they are, under which names they lie, and how much there may be."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server is an extra: '.[serve]'")

from openglm.serve.database import Database
from openglm.serve.errors import ServeError
from openglm.serve.files import ABANDONED_SECONDS, Files, FileSettings, file_object
from openglm.serve.jobs import Jobs
from openglm.serve.listing import ID, Page, listed
from openglm.serve.tables import File, Job

ANN, BOB = "a" * 32, "b" * 32


@pytest.fixture
def files(database: Database, tmp_path: Path) -> Files:
    return Files(database, FileSettings(tmp_path / "files", spare_bytes=0))


def add(files: Files, key_id: str = ANN, name: str = "a.jsonl", content: bytes = b"x") -> File:
    return files.add(key_id, name, "batch", [content])


def contents(files: Files) -> set[str]:
    return {path.name for path in files.folder.iterdir()}


def test_a_file(files: Files) -> None:
    """What is read back is not what was stored, or others on the machine may read it."""
    file = files.add(ANN, "名字.jsonl", "batch", [b"one", b"", b"two"])
    assert files.path(file).read_bytes() == b"onetwo"
    assert contents(files) == {file.id}
    assert ID.fullmatch(file.id)
    assert stat.S_IMODE(files.path(file).stat().st_mode) == 0o600
    assert stat.S_IMODE(files.folder.stat().st_mode) == 0o700
    found = file_object(files.get(ANN, file.id))
    assert found | {"created_at": 0} == {
        "id": file.id, "object": "file", "bytes": 6, "created_at": 0, "filename": "名字.jsonl",
        "purpose": "batch", "status": "processed",
    }  # fmt: skip
    files.delete(ANN, file.id)
    assert contents(files) == set()
    with pytest.raises(ServeError, match="there is no file"):
        files.get(ANN, file.id)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "..\\x", "/etc/cron.d/x", "a/b", "C:\\x", "a\x00b", "a\nb", "a\x1b[0m",
     "x" * 256, "a\u202eb", "\ud800"],
    ids=ascii,
)  # fmt: skip
def test_names_that_are_none(files: Files, name: str) -> None:
    """A name leads a client that saves the file out of its folder, or forges lines of a log."""
    with pytest.raises(ServeError, match="printable"):
        add(files, name=name)
    assert contents(files) == set()


@pytest.mark.parametrize(
    "name", ["x" * 255, "CON", "%2e%2e%2fx", "a b'\";.html", ".hidden", "档案"]
)
def test_names_are_data(files: Files, name: str) -> None:
    """A name decides where a file is stored."""
    file = add(files, name=name)
    assert contents(files) == {file.id}
    assert files.get(ANN, file.id).name == name


@pytest.mark.parametrize("purpose", ["", "batchs", "../..", "batch_output", "BATCH", "\x00"])
def test_purposes_that_are_none(files: Files, purpose: str) -> None:
    """A client passes a file off as one of ours, or a slip is only noticed when it is used."""
    with pytest.raises(ServeError, match="purpose") as error:
        files.add(ANN, "a", purpose, [b"x"])
    assert error.value.param == "purpose"


def test_files_of_others(files: Files) -> None:
    """A key reads, lists or deletes the file of another key."""
    file = add(files)
    for act in (files.get, files.delete):
        with pytest.raises(ServeError) as other:
            act(BOB, file.id)
        with pytest.raises(ServeError) as unknown:
            act(BOB, f"file-{'0' * 32}")
        assert other.value.kind == unknown.value.kind == "not_found"
        assert other.value.message.replace(file.id, "") == unknown.value.message.replace(
            f"file-{'0' * 32}", ""
        )
    assert files.list(BOB, Page()) == ([], False)
    with pytest.raises(ServeError):
        files.list(BOB, Page(after=file.id))
    assert files.path(file).exists()


@pytest.mark.parametrize(
    "file_id", ["", "..", "../serve.db", "Li4vc2VydmUuZGI=", "%2e%2e", "a\x00", "x" * 10**4, "é"]
)
def test_ids_are_no_paths(files: Files, file_id: str) -> None:
    """An id leads to a file that was never uploaded."""
    add(files)
    for act in (files.get, files.delete):
        with pytest.raises(ServeError) as error:
            act(ANN, file_id)
        assert error.value.kind == "not_found"
    assert len(contents(files)) == 1


def test_sizes(files: Files, database: Database, tmp_path: Path) -> None:
    """A client fills the disk, by one file or by many."""
    settings = FileSettings(tmp_path / "files", 10, 25, 3, spare_bytes=0)
    files = Files(database, settings)
    taken = []

    def endless() -> Iterator[bytes]:
        while True:
            taken.append(1)
            yield b"12345"

    with pytest.raises(ServeError) as error:
        files.add(ANN, "a", "batch", endless())
    assert error.value.kind == "too_large"
    assert len(taken) == 3  # and no more is read
    first, _ = add(files, content=b"0" * 10), add(files, content=b"0" * 10)
    with pytest.raises(ServeError, match="it has 2 with 20"):
        add(files, content=b"0" * 6)
    assert len(contents(files)) == 2
    add(files, content=b"0" * 5)
    with pytest.raises(ServeError, match="it has 3 with 25"):
        add(files, content=b"")
    add(files, BOB, content=b"0" * 10)
    files.delete(ANN, first.id)
    add(files, content=b"0" * 10)
    spare = Files(database, FileSettings(tmp_path / "files", spare_bytes=1 << 60))
    with pytest.raises(ServeError, match="nearly full") as refused:
        add(spare)
    assert refused.value.retry_after


def test_uploads_at_once_share_a_quota(database: Database, tmp_path: Path) -> None:
    """Uploads that begin together do not see each other and exceed the quota together."""
    files = Files(database, FileSettings(tmp_path / "files", key_bytes=35, spare_bytes=0))
    together = threading.Barrier(8)

    def upload(_: int) -> bool:
        def content() -> Iterator[bytes]:
            together.wait(10)
            yield b"0" * 10

        try:
            files.add(ANN, "same name", "batch", content())
        except ServeError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(upload, range(8))) == 3
    assert len(contents(files)) == 3


def test_pages(files: Files) -> None:
    """A list of many files repeats some or leaves some out."""
    every = [add(files, name=str(number)).id for number in range(7)]
    add(files, BOB)
    for order, expected in (("asc", every), ("desc", every[::-1])):
        found: list[str] = []
        after, more = None, True
        while more:
            page = Page(after=after, limit=3, order=order)  # type: ignore[arg-type]
            rows, more = files.list(ANN, page)
            found += [row.id for row in rows]
            after = found[-1]
        assert found == expected
    rows, more = files.list(ANN, Page(limit=2))
    page = listed([file_object(row) for row in rows], more)
    assert (page["first_id"], page["last_id"]) == (every[6], every[5])
    assert page["has_more"] is True
    assert listed([], False)["last_id"] is None
    assert files.list(ANN, Page(), "fine-tune") == ([], False)
    assert len(files.list(ANN, Page(), "batch")[0]) == 7


def test_an_upload_that_breaks_off(files: Files) -> None:
    """Half a file can be read, or stays on the disk for ever."""

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        files.add(ANN, "a", "batch", broken())
    assert contents(files) == set()


def test_nothing_is_written_through_links(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who can foresee a name makes the server write elsewhere, or overwrites a file."""
    name = f"file-{'0' * 32}"
    monkeypatch.setattr("openglm.serve.files.new_id", lambda prefix: name)
    target = files.folder.parent / "target"
    os.symlink(target, files.folder / f".{name}")
    with pytest.raises(FileExistsError):
        add(files)
    assert not target.exists()


def test_what_a_crash_left(files: Files) -> None:
    """Content that no row knows fills the disk; or an upload of this moment is swept away."""
    kept, lost = add(files), "file-" + "1" * 32
    for name in (lost, f".{lost}", "file-" + "2" * 32):
        (files.folder / name).write_bytes(b"x")
    old = time.time() - ABANDONED_SECONDS - 60
    for name in (kept.id, lost, f".{lost}"):
        os.utime(files.folder / name, (old, old))
    files.sweep()
    assert contents(files) == {kept.id, "file-" + "2" * 32}


def test_a_file_that_is_read(files: Files, database: Database) -> None:
    """A batch loses its lines while it is at them."""
    jobs, file = Jobs(database), add(files)
    body = {"input_file_id": file.id}
    job = Job(id="batch_" + "0" * 32, key_id=ANN, kind="batch", body=body, input_id=file.id)
    jobs.add(job)
    with pytest.raises(ServeError, match="is read by batch_0"):
        files.delete(ANN, file.id)
    jobs.cancel("batch", ANN, job.id)
    files.delete(ANN, file.id)
