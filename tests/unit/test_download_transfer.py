"""Fetching over a connection and from a server that fail: every byte once, every byte checked."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from helpers_hub import COMMIT, HubServer, Repository
from openglm.errors import DownloadError
from openglm.hub import Plan, Report, download, find_target, open_hub
from openglm.hub.listing import hub_file
from openglm.hub.store import Store

NAME, WEIGHTS = "org/tiny", "model.safetensors"
SIZE = 300_000


class Notes:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []
        self.retries: list[tuple[str, float]] = []
        self.counted = 0

    def plan(self, plan: Plan) -> None:
        self.plans.append(plan)

    def bytes(self, count: int) -> None:
        self.counted += count

    def retrying(self, reason: str, seconds: float) -> None:
        self.retries.append((reason, seconds))

    def checking(self, path: str) -> None: ...


@pytest.fixture
def server(hub_server: HubServer) -> HubServer:
    """Has one repository with weights of 300 kB."""
    files = {
        "config.json": b'{"a": 1}',
        "modeling.py": b"raise SystemExit",
        WEIGHTS: random.Random(1).randbytes(SIZE),
    }
    hub_server.repositories[NAME] = Repository(files)
    return hub_server


def fetch(server: HubServer, watcher: Notes | None = None, hub: str = "huggingface") -> Report:
    target = find_target(NAME, hub)
    return download(target, open_hub(target, server.endpoint), watcher or Notes())


def refused(server: HubServer, *named: str) -> DownloadError:
    """Fetching fails with a message that has all of `named`, and with a hint; no folder appears."""
    with pytest.raises(DownloadError) as caught:
        fetch(server)
    for text in named:
        assert text in caught.value.message, caught.value.message
    assert caught.value.hint
    assert not Store("org--tiny").folder.exists()
    return caught.value


@pytest.mark.parametrize("hub", ["huggingface", "modelscope"])
def test_files_arrive_as_they_are(hub: str, server: HubServer) -> None:
    """The plain case: a file is missing, changed, or one too many."""
    watcher = Notes()
    report = fetch(server, watcher, hub)
    files = server.repositories[NAME].files
    names = sorted(path.name for path in report.folder.iterdir())
    assert names == ["config.json", WEIGHTS, "openglm-download.json"]
    assert (report.folder / WEIGHTS).read_bytes() == files[WEIGHTS]
    assert (report.folder / "config.json").read_bytes() == files["config.json"]
    assert watcher.counted == report.brought_bytes == SIZE + len(files["config.json"])
    assert not list((report.folder.parent / ".partial").iterdir())


@pytest.mark.parametrize("hub", ["huggingface", "modelscope"])
def test_three_drops_cost_no_byte(hub: str, server: HubServer) -> None:
    """A dropped connection starts 12 GB from the beginning, or leaves a hole."""
    server.drops = [50_000, 60_000, 70_000]
    watcher = Notes()
    report = fetch(server, watcher, hub)
    starts = [request.start for request in server.requests(WEIGHTS)]
    assert starts == [0, 50_000, 110_000, 180_000]
    assert (report.folder / WEIGHTS).read_bytes() == server.repositories[NAME].files[WEIGHTS]
    assert [seconds for _, seconds in watcher.retries] == [1.0, 1.0, 1.0], "bytes came in between"


def test_a_connection_that_never_gives_a_byte_is_given_up(server: HubServer) -> None:
    """A dead server is asked for ever, or at once a thousand times."""
    server.drops = [0] * 10
    watcher = Notes()
    with pytest.raises(DownloadError, match="cannot be reached"):
        fetch(server, watcher)
    assert [seconds for _, seconds in watcher.retries] == [1.0, 2.0, 4.0, 8.0, 16.0]


def test_the_next_run_goes_on(server: HubServer) -> None:
    """After giving up, or Ctrl-C, the bytes that were fetched are fetched again."""
    server.drops = [120_000] + [0] * 6
    with pytest.raises(DownloadError):
        fetch(server)
    server.drops.clear()
    server.log.clear()
    watcher = Notes()
    report = fetch(server, watcher)
    assert [request.start for request in server.requests(WEIGHTS)] == [120_000]
    assert report.brought_bytes == SIZE - 120_000
    assert watcher.plans[0].here_bytes == 120_000 + len(b'{"a": 1}')
    assert (report.folder / WEIGHTS).read_bytes() == server.repositories[NAME].files[WEIGHTS]


def test_a_part_of_another_revision_is_not_continued(server: HubServer) -> None:
    """The beginning of the old weights and the end of the new ones become one file."""
    server.drops = [120_000] + [0] * 6
    with pytest.raises(DownloadError):
        fetch(server)
    server.drops.clear()
    server.log.clear()
    server.repositories[NAME].files[WEIGHTS] = random.Random(2).randbytes(SIZE)
    report = fetch(server)
    assert [request.start for request in server.requests(WEIGHTS)] == [0]
    assert (report.folder / WEIGHTS).read_bytes() == server.repositories[NAME].files[WEIGHTS]
    assert len(list(report.folder.iterdir())) == 3


@pytest.mark.parametrize("fault", ["ignores_range", "shifts_range"])
def test_a_server_that_continues_elsewhere(fault: str, server: HubServer) -> None:
    """Bytes from another place are appended."""
    server.drops = [50_000]
    setattr(server, fault, True)
    watcher = Notes()
    report = fetch(server, watcher)
    assert (report.folder / WEIGHTS).read_bytes() == server.repositories[NAME].files[WEIGHTS]
    assert watcher.counted == report.brought_bytes, "the bar must go back with the bytes"


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_busy_server_is_asked_again(status: int, server: HubServer) -> None:
    """An overloaded mirror ends the download; its Retry-After is not heard."""
    server.statuses, server.retry_after = [status, status], "7"
    watcher = Notes()
    fetch(server, watcher)
    assert watcher.retries == [(f"HTTP {status}", 7.0)] * 2


def test_changed_content_is_removed(server: HubServer) -> None:
    """A proxy or a disk that changes a byte gives a model that talks nonsense."""
    server.corrupt = {WEIGHTS}
    error = refused(server, WEIGHTS, "sha256:")
    assert "removed" in error.hint
    held = [path.name for path in Store("org--tiny").partial.iterdir()]
    assert sorted(held) == ["config.json", "openglm-download.json"]
    server.corrupt = set()
    assert fetch(server).status == "downloaded"


def test_changed_small_files_are_found_by_their_git_hash(server: HubServer) -> None:
    """Only Git LFS files have a SHA-256; a changed config.json would pass."""
    server.corrupt = {"config.json"}
    refused(server, "config.json", "git:")


def test_a_login_page_instead_of_a_file(server: HubServer) -> None:
    """A captive portal answers 200 with something else; a short file is taken for a whole one."""
    server.sent_size = {WEIGHTS: 1000}
    refused(server, WEIGHTS, "300000 bytes", "1000")


@pytest.mark.parametrize("hub", ["huggingface", "modelscope"])
def test_a_gated_repository_says_how_to_log_in(
    hub: str, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare 401 helps nobody; a login must open the door."""
    server.is_gated = True
    with pytest.raises(DownloadError, match="access refused") as caught:
        fetch(server, hub=hub)
    variable = {"huggingface": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}[hub]
    assert variable in caught.value.hint
    monkeypatch.setenv(variable, "secret")
    assert fetch(server, hub=hub).status == "downloaded"


def test_the_login_stays_with_the_hub(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token is sent to whoever the hub redirects to."""
    server.is_gated = True
    monkeypatch.setenv("HF_TOKEN", "secret")
    fetch(server)
    (request,) = server.requests(WEIGHTS)
    assert str(request.port) in server.cdn
    assert "authorization" not in request.headers


def test_a_missing_repository_and_revision(server: HubServer) -> None:
    """A typing slip ends in a traceback."""
    target = find_target("org/nothing")
    with pytest.raises(DownloadError, match="org/nothing does not exist"):
        download(target, open_hub(target, server.endpoint), Notes())
    target = find_target(NAME)
    with pytest.raises(DownloadError, match="no revision 'v9'"):
        download(target, open_hub(target, server.endpoint), Notes(), revision="v9")
    target = find_target("org/nothing", "modelscope")
    with pytest.raises(DownloadError, match="does not exist"):
        download(target, open_hub(target, server.endpoint), Notes())


def test_a_renamed_organisation(server: HubServer) -> None:
    """Old instructions, books and scripts say THUDM; the hub redirects, and so must we."""
    server.repositories["zai-org/other"] = server.repositories[NAME]
    target = find_target("THUDM/other")
    report = download(target, open_hub(target, server.endpoint), Notes())
    assert report.folder.name == "zai-org--other"
    assert report.record is not None
    assert report.record.source == f"{server.endpoint}/zai-org/other"


def test_a_preset_that_its_hub_lost_says_where_else(hub_server: HubServer) -> None:
    """Links die; the user is left with a 404."""
    target = find_target("glm-large")
    with pytest.raises(DownloadError, match="does not exist, or is private") as caught:
        download(target, open_hub(target, hub_server.endpoint), Notes())
    assert "glm-large-blank.tar.bz2" in caught.value.hint


def test_no_network_is_one_clear_line(hub_server: HubServer) -> None:
    """A user behind a firewall sees forty lines of a library."""
    target = find_target(NAME)
    watcher = Notes()
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9 cannot be reached") as caught:
        download(target, open_hub(target, "http://127.0.0.1:9"), watcher)
    assert len(watcher.retries) == 2
    for way in ("PROXY", "HF_ENDPOINT", "--hub", "--from"):
        assert way in caught.value.hint


@pytest.mark.parametrize("hub", ["huggingface", "modelscope"])
def test_a_network_that_answers_itself(hub: str, server: HubServer) -> None:
    """The login page of a hotel is reported as a bug of this package."""
    server.is_portal = True
    with pytest.raises(DownloadError, match="did not answer as"):
        fetch(server, hub=hub)


def test_offline_mode_is_respected(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE promises that nothing goes out."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        fetch(server)
    assert not server.log


def test_a_full_disk_is_seen_before_the_first_byte(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full after an hour; what is already here must not count."""
    server.drops = [120_000] + [0] * 6
    with pytest.raises(DownloadError):
        fetch(server)
    server.drops.clear()
    server.log.clear()
    free = [SIZE - 120_000 - 1]
    monkeypatch.setattr("openglm.hub.store.Store.free_bytes", lambda _: free[0])
    refused(server, "180,000 bytes are needed and 179,999 are free")
    assert not server.requests(WEIGHTS)
    free[0] += 1
    assert fetch(server).status == "downloaded"


def test_an_index_without_its_shards_is_found_before_the_weights(server: HubServer) -> None:
    """12 GB are fetched of a repository that cannot be loaded."""
    files = server.repositories[NAME].files
    del files[WEIGHTS]
    weight_map = {"a": "model-00001-of-00001.safetensors", "b": "extra.safetensors"}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    files["model-00001-of-00001.safetensors"] = b"x" * 1000
    refused(server, "extra.safetensors")
    assert not server.requests("model-00001-of-00001.safetensors")


HOSTILE = [
    "../../outside.json",
    "/etc/outside.json",
    "a/../../outside.json",
    "..\\outside.json",
    "C:outside.json",
    "~/outside.json",
    "./outside.json",
    "a//outside.json",
    "outside.json\0.json",
    "out\nside.json",
    "",
    "x" * 201 + ".json",
    None,
    7,
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_leave_the_folder(name: object) -> None:
    """A hostile mirror writes into ~/.ssh."""
    with pytest.raises(DownloadError, match="could leave the folder"):
        hub_file(name, 3)


@pytest.mark.parametrize("hub", ["huggingface", "modelscope"])
def test_one_hostile_name_stops_everything(hub: str, server: HubServer) -> None:
    """The rest of such a listing is trusted."""
    name = "../../outside.json"
    entry = {"rfilename": name, "Path": name, "Type": "blob", "Size": 3, "size": 3}
    server.repositories[NAME].extra_entries = [entry]
    with pytest.raises(DownloadError, match="could leave the folder"):
        fetch(server, hub=hub)
    assert not server.requests("config.json")
    assert not Store("org--tiny").partial.exists()


@pytest.mark.parametrize(
    "listed",
    [
        {"size": -1},
        {"size": "12"},
        {"size": None},
        {"lfs": {"sha256": "../../../outside", "size": 3, "pointerSize": 1}},
        {"lfs": {"sha256": "sha256:..", "size": 3, "pointerSize": 1}},
        {"lfs": {"sha256": "0" * 63 + "/", "size": 3, "pointerSize": 1}},
    ],
)
def test_sizes_and_digests_that_are_none(listed: dict[str, object], server: HubServer) -> None:
    """A digest becomes a part of a file name, and leaves the folder with it."""
    server.repositories[NAME].listed[WEIGHTS] = listed
    with pytest.raises(DownloadError, match="the listing gives"):
        fetch(server)


def test_a_path_twice(server: HubServer) -> None:
    """The first is checked and the second is written."""
    digest = {"sha256": "0" * 64, "size": 3, "pointerSize": 1}
    entry = {"rfilename": WEIGHTS, "size": 3, "blobId": "", "lfs": digest}
    server.repositories[NAME].extra_entries = [entry]
    with pytest.raises(DownloadError, match="2 times"):
        fetch(server)


def test_weights_without_a_checksum(server: HubServer) -> None:
    """A mirror that lists no digest could send anything."""
    server.repositories[NAME].listed[WEIGHTS] = {"Sha256": ""}
    with pytest.raises(DownloadError, match="no checksum"):
        fetch(server, hub="modelscope")


def test_a_link_in_the_place_of_a_file(server: HubServer, tmp_path: Path) -> None:
    """Who can write into the folder makes the download overwrite a file elsewhere."""
    outside = tmp_path / "outside"
    outside.write_text("mine")
    partial = Store("org--tiny").partial
    partial.mkdir(parents=True)
    (partial / WEIGHTS).symlink_to(outside)
    with pytest.raises(DownloadError, match="leads out of its folder"):
        fetch(server)
    assert outside.read_text() == "mine"


def test_two_at_once(server: HubServer) -> None:
    """Two processes write into one file."""
    with Store("org--tiny").locked(), pytest.raises(DownloadError, match="another process"):
        fetch(server)
    assert fetch(server).status == "downloaded"


def test_a_second_run_asks_nobody(server: HubServer) -> None:
    """A finished model is fetched again, or needs the network."""
    first = fetch(server)
    server.log.clear()
    second = fetch(server)
    assert (second.status, second.folder, second.brought_bytes) == ("already here", first.folder, 0)
    assert not server.log


def test_what_was_damaged_is_mended(server: HubServer) -> None:
    """The only way out of a damaged file is to fetch everything again."""
    folder = fetch(server).folder
    (folder / WEIGHTS).write_bytes(b"half")
    server.log.clear()
    assert fetch(server).status == "downloaded"
    assert server.requests(WEIGHTS)
    assert not any("config.json" in request.path for request in server.log)
    (folder / WEIGHTS).write_bytes(b"x" * SIZE)  # of the right size: only its digest tells
    assert fetch(server).status == "already here"
    target = find_target(NAME)
    mended = download(target, open_hub(target, server.endpoint), Notes(), verify=True)
    assert mended.brought_bytes == SIZE
    assert (folder / WEIGHTS).read_bytes() == server.repositories[NAME].files[WEIGHTS]
    (folder / "config.json").unlink()
    fetch(server)
    asked = [request.path for request in server.log if request.path.startswith("/api/")]
    assert f"/revision/{COMMIT}" in asked[-1], "the same commit mends it, not a newer one"


def test_another_revision_replaces_what_changed(server: HubServer) -> None:
    """--revision of a model that is here is ignored, or fetches what did not change."""
    fetch(server)
    server.repositories[NAME].files["config.json"] = b'{"a": 2}'
    server.repositories[NAME].commit = "f" * 40
    server.log.clear()
    target = find_target(NAME)
    report = download(target, open_hub(target, server.endpoint), Notes(), revision="main")
    assert (report.folder / "config.json").read_bytes() == b'{"a": 2}'
    assert not server.requests(WEIGHTS)
    assert report.record is not None
    assert report.record.revision == "f" * 40
    again = download(target, open_hub(target, server.endpoint), Notes(), revision="main")
    assert (again.status, again.brought_bytes) == ("already here", 0)
    server.log.clear()
    fixed = download(target, open_hub(target, server.endpoint), Notes(), revision="f" * 40)
    assert (fixed.status, server.log) == ("already here", [])


def test_a_hub_that_does_not_answer_costs_no_model(server: HubServer) -> None:
    """Asking for a newer revision without a network takes the present one away."""
    folder = fetch(server).folder
    target = find_target(NAME)
    with pytest.raises(DownloadError, match="cannot be reached"):
        download(target, open_hub(target, "http://127.0.0.1:9"), Notes(), revision="main")
    assert (folder / WEIGHTS).exists()


def test_a_folder_of_somebody_else_is_left_alone(server: HubServer) -> None:
    """What a user put there by hand is overwritten."""
    folder = Store("org--tiny").folder
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("mine")
    report = fetch(server)
    assert (report.status, report.record) == ("already here", None)
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_the_record_says_what_was_checked(server: HubServer) -> None:
    """Nobody can tell later where a file came from."""
    record = json.loads((fetch(server).folder / "openglm-download.json").read_text())
    assert record["source"] == f"{server.endpoint}/{NAME}"
    assert (record["revision"], record["licence"]) == (COMMIT, "other")
    assert {name: entry["size"] for name, entry in record["files"].items()} == {
        "config.json": 8,
        WEIGHTS: SIZE,
    }
