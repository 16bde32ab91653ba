"""`--from DIR`: what others fetched, checked as far as a folder allows."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from helpers_hub import git_blob
from helpers_models import write_checkpoint
from openglm.errors import LFS_MARK, DownloadError
from openglm.home import find_model
from openglm.hub import Report, find_target, import_folder
from openglm.hub.store import Store

WEIGHTS = "model.safetensors"
SNAPSHOT = "0123456789abcdef"


class Silent:
    """A watcher that does not look."""

    def plan(self, plan: object) -> None: ...

    def bytes(self, count: int) -> None: ...

    def retrying(self, reason: str, seconds: float) -> None: ...

    def checking(self, path: str) -> None: ...


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENGLM_HOME", str(tmp_path / "home"))


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder as `git clone` leaves it."""
    folder = tmp_path / "clone"
    write_checkpoint(folder, "hf")
    (folder / ".git").mkdir()
    (folder / ".git" / "config.json").write_text("{}")
    (folder / "modeling_glm.py").write_text("raise SystemExit")
    return folder


def bring(folder: Path, name: str = "glm-large-chinese") -> Report:
    return import_folder(find_target(name), folder, Silent())


def refused(folder: Path, *named: str) -> None:
    """Importing fails with a message that has all of `named`, and nothing appears."""
    with pytest.raises(DownloadError) as caught:
        bring(folder)
    for text in named:
        assert text in caught.value.message, caught.value.message
    assert not Store("glm-large-chinese").folder.exists()


def cache_of(clone: Path, root: Path, name: str = "models--THUDM--glm-large-chinese") -> Path:
    """A Hugging Face cache: blobs named by digest, links in a snapshot."""
    repository = root / name
    blobs, snapshot = repository / "blobs", repository / "snapshots" / SNAPSHOT
    for folder in (blobs, snapshot, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(SNAPSHOT)
    for path in clone.iterdir():
        if path.is_file():
            content = path.read_bytes()
            is_large = path.suffix == ".safetensors"
            digest = hashlib.sha256(content).hexdigest() if is_large else git_blob(content)
            (blobs / digest).write_bytes(content)
            (snapshot / path.name).symlink_to(f"../../blobs/{digest}")
    return root


def test_a_clone(clone: Path) -> None:
    """A model that was carried in on a disk cannot be used by its name."""
    report = bring(clone)
    assert report.status == "imported"
    assert find_model("THUDM/glm-large-chinese") == report.folder
    names = sorted(path.name for path in report.folder.iterdir())
    assert names == ["config.json", WEIGHTS, "openglm-download.json"]
    assert (report.folder / WEIGHTS).read_bytes() == (clone / WEIGHTS).read_bytes()
    digest = hashlib.sha256((clone / WEIGHTS).read_bytes()).hexdigest()
    assert report.record is not None
    assert report.record.files[WEIGHTS]["digest"] == f"sha256:{digest}"
    assert "MIT" in report.record.licence
    assert bring(clone).status == "already here"


@pytest.mark.parametrize("inner", ["", "models--THUDM--glm-large-chinese", "snapshot"])
def test_a_hugging_face_cache(inner: str, clone: Path, tmp_path: Path) -> None:
    """Whoever has the model in the cache of transformers fetches it again."""
    root = cache_of(clone, tmp_path / "cache")
    source = root / inner
    if inner == "snapshot":  # copied with its links followed
        source = tmp_path / "snapshot"
        source.mkdir()
        for path in (root / "models--THUDM--glm-large-chinese/snapshots" / SNAPSHOT).iterdir():
            (source / path.name).write_bytes(path.read_bytes())
    report = bring(source)
    assert not (report.folder / WEIGHTS).is_symlink()
    assert (report.folder / WEIGHTS).read_bytes() == (clone / WEIGHTS).read_bytes()


def test_a_damaged_blob_of_a_cache(clone: Path, tmp_path: Path) -> None:
    """The cache names the digest of every file; nobody compares it."""
    root = cache_of(clone, tmp_path / "cache")
    (blob,) = root.glob(f"*/blobs/{hashlib.sha256((clone / WEIGHTS).read_bytes()).hexdigest()}")
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(root, WEIGHTS, "sha256:")


def test_a_cache_with_several_revisions(clone: Path, tmp_path: Path) -> None:
    """One of them is taken, whichever comes first."""
    root = cache_of(clone, tmp_path / "cache")
    repository = root / "models--THUDM--glm-large-chinese"
    (repository / "snapshots" / "ffff").mkdir()
    assert bring(root).status == "imported"  # refs/main says which
    (repository / "refs" / "main").unlink()
    with pytest.raises(DownloadError, match="2 revisions"):
        bring(repository, "glm-10b")


def test_a_git_lfs_pointer(clone: Path) -> None:
    """Without git-lfs a clone has text files of 130 bytes for weights."""
    (clone / WEIGHTS).write_bytes(LFS_MARK + b".github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(clone, WEIGHTS, "Git LFS pointer")


def test_half_a_file(clone: Path) -> None:
    """A download that was cut off is imported, and fails when it is loaded."""
    content = (clone / WEIGHTS).read_bytes()
    (clone / WEIGHTS).write_bytes(content[: len(content) // 2])
    refused(clone, WEIGHTS, "ends early")


def test_half_a_torch_file(clone: Path) -> None:
    """The same of a .bin, whose directory is at its end."""
    import torch

    torch.save({"a": torch.zeros(1000)}, clone / "pytorch_model.bin")
    (clone / WEIGHTS).unlink()
    assert bring(clone).status == "imported"
    whole = (clone / "pytorch_model.bin").read_bytes()
    (clone / "pytorch_model.bin").write_bytes(whole[:-200])
    with pytest.raises(DownloadError, match="ends early"):
        bring(clone, "glm-10b")


def test_a_shard_that_the_index_names(clone: Path) -> None:
    """A folder without one of its files is taken for whole."""
    (clone / WEIGHTS).rename(clone / "model-00001-of-00001.safetensors")
    weight_map = {"a": "model-00001-of-00001.safetensors", "b": "more.safetensors"}
    (clone / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(clone, "more.safetensors")


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder link"])
def test_what_is_no_file_of_the_folder(kind: str, clone: Path, tmp_path: Path) -> None:
    """A crafted folder makes us copy a private file, or wait for ever."""
    secret = tmp_path / "secret.json"
    secret.write_text('{"key": 1}')
    place = clone / "extra.json"
    if kind == "link":
        place.symlink_to(secret)
    elif kind == "dangling":
        place.symlink_to(clone / "nothing")
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        (tmp_path / "outside").mkdir()
        (clone / "config.json").rename(tmp_path / "outside" / "config.json")
        (clone / "config.json").symlink_to(tmp_path / "outside" / "config.json")
        place = clone / "config.json"
    refused(clone, place.name)


def test_a_megatron_folder(tmp_path: Path) -> None:
    """GLM-130B comes as rank files in a subfolder with a tracker beside it."""
    source = tmp_path / "sat"
    write_checkpoint(source, "megatron", num_ranks=2)
    folder = bring(source, "glm-base").folder
    files = {p.relative_to(source) for p in source.rglob("*.pt")}
    assert len(files) == 2
    assert {p.relative_to(folder) for p in folder.rglob("*.pt")} == files
    assert (folder / "latest_checkpointed_iteration.txt").exists() or (folder / "latest").exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """A traceback for a typing slip."""
    refused(tmp_path / "nothing", "there is no folder")


def test_an_import_that_was_cut_off_starts_again(clone: Path) -> None:
    """Half a copy from last time is continued with bytes from elsewhere."""
    store = Store("glm-large-chinese")
    size = (clone / WEIGHTS).stat().st_size
    store.partial.mkdir(parents=True)
    (store.partial / f"{WEIGHTS}.{size}.part").write_bytes(b"half")
    (store.partial / "config.json").write_text("{}")
    report = bring(clone)
    assert (report.folder / WEIGHTS).read_bytes() == (clone / WEIGHTS).read_bytes()
    assert (report.folder / "config.json").read_bytes() == (clone / "config.json").read_bytes()
