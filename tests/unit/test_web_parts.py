"""Parts of the web page that need no browser."""

from __future__ import annotations

import pytest

import openglm
from openglm.errors import ConfigError
from openglm.serve.web.door import WANTED, Door
from openglm.serve.web.form import preferred
from openglm.serve.web.history import MOST as MOST_CONVERSATIONS
from openglm.serve.web.history import MOST_CHARACTERS, History, Turn
from openglm.serve.web.payload import is_free_of_files
from openglm.serve.web.sessions import MOST, SECONDS, Sessions


def test_a_session_ends_with_its_time() -> None:
    """A stolen cookie would open the page for ever."""
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    token = sessions.begin("somebody")
    assert sessions.find(token) == "somebody"
    now[0] = SECONDS
    assert sessions.find(token) is None
    assert sessions.find("") is None


def test_there_are_only_so_many_sessions() -> None:
    """Logging in again and again would fill the memory."""
    sessions = Sessions()
    first = sessions.begin("somebody")
    rest = [sessions.begin("somebody") for _ in range(MOST)]
    assert sessions.find(first) is None
    assert all(map(sessions.find, rest))


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en;q=0.8,zh;q=0.9", "zh"),
        ("fr,de;q=0.7", "en"),
        ("", "en"),
        ("zh;q=nonsense,en", "en"),
    ],
)
def test_the_language_is_the_one_liked_best(accepted: str, language: str) -> None:
    """The order in the header, not the weights, would decide; or nonsense would raise."""
    assert preferred(accepted) == language


@pytest.mark.parametrize("path", ["", "page", "/..", "/a b", "//", "/%2e"])
def test_a_malformed_path_is_refused(path: str) -> None:
    """The page would be nowhere, or everywhere."""
    with pytest.raises(ConfigError, match="is no path"):
        Door(None, None, None, path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "path", ["gradio_api/file=/etc/passwd", "gradio_api/proxy=http://x", "gradio_api/upload"]
)
def test_what_the_page_does_not_need_is_not_passed_on(path: str) -> None:
    """Gradio's own doors to files and to other hosts would be open."""
    assert WANTED.fullmatch(path) is None


@pytest.mark.parametrize(
    "body",
    [
        b'{"data": [{"path": "http://x/y", "meta": {"_type": "gradio.FileData"}}]}',
        b'{"data": [[{"content": [{"p\\u0061th": "/etc/passwd"}]}]]}',
        b'{"data": [',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_what_may_be_a_file_is_not_passed_on(body: bytes) -> None:
    """Gradio would fetch an address that a reader names, or the check fail on what is no JSON."""
    assert not is_free_of_files(body)


def test_a_text_about_paths_is_no_file() -> None:
    """Nobody could ask about files."""
    assert is_free_of_files(b'{"data": ["path", [{"role": "user", "content": "{\\"path\\": 1}"}]]}')


def test_the_picture_shows_what_was_fed() -> None:
    """The drawn tokens or positions would not be those of the network."""
    from openglm.serve.web.picture import draw, seen

    model = openglm.load("mini")
    asked = model.request("The [MASK] sat on the [MASK].", "fill", max_tokens=4)
    first, second = model.tokenizer.encode("cat")[:1], model.tokenizer.encode("mat")[:1]
    found = seen(model.config, asked.prompt, asked.params, [first, second])
    context, masks = asked.prompt.context_ids, asked.prompt.mask_positions
    sop = asked.prompt.first_id
    assert found.track.tokens == [*context, sop, *first, sop, *second]
    assert found.track.positions[len(context) :] == [masks[0]] * 2 + [masks[1]] * 2
    assert found.track.blocks[len(context) :] == [1, 2, 1, 2]
    mask = found.mask()
    assert mask[: len(context), : len(context)].all()
    assert not mask[: len(context), len(context) :].any()
    assert [end - start for start, end, _ in found.parts()] == [len(context), 2, 2]
    drawn = draw(found, ["<x>"] * len(found.track), lambda english, chinese: english)
    assert "<x>" not in drawn
    assert drawn.count("<circle") == 2 * len(found.track)


def test_the_picture_of_a_model_that_reads_again_is_that_of_its_last_pass() -> None:
    """ChatGLM-6B and GLM-130B would be drawn as if they filled all blanks in one pass."""
    from openglm.engine.params import SamplingParams
    from openglm.engine.prompt import Prompt
    from openglm.serve.web.picture import seen, tint

    config = openglm.load("mini").config
    prompt = Prompt([5, 6, 7, 6, 8], [1, 3], ["", "", ""], 9, frozenset({3}), "refeed")
    found = seen(config, prompt, SamplingParams(max_tokens=4), [[20, 21], [22]])
    assert found.track.tokens == [5, 20, 21, 7, 6, 8, 9, 22]
    assert found.visible == 6
    assert [colour for _, _, colour in found.parts()][1:] == [tint(1)]


def test_a_model_that_was_loaded_anew_is_not_faster_than_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its card would show a negative speed, since its engine counts from 0 again."""
    pytest.importorskip("gradio", reason="the tab needs gradio")
    from openglm.serve.web.models import SECONDS, _Speeds

    now = [0.0]
    monkeypatch.setattr("openglm.serve.web.models.time.monotonic", lambda: now[0])
    speeds, found = _Speeds(), []
    for num_tokens in (0, 100, 0, 10):
        found.append(speeds.of("mini", num_tokens))
        now[0] += SECONDS
    assert found == [0, 100 / SECONDS, 0, 10 / SECONDS]


def turns(*texts: str) -> list[Turn]:
    return [Turn(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(texts)]


@pytest.mark.parametrize("kept", [None, "x", [], {"owner": "you"}, {"conversations": [[{}]]}])
def test_what_another_left_in_the_browser_is_not_shown(kept: object) -> None:
    """Readers of one browser would see each other's conversations, or nonsense break the tab."""
    assert History.read(kept, "me") == History(owner="me")


def test_a_conversation_that_goes_on_replaces_itself() -> None:
    """Each answer would be kept as a conversation of its own."""
    history = History(owner="me")
    history.put(turns("a"))
    history.put(turns("a", "b"))
    history.is_open = False
    history.put(turns("c"))
    assert history.titles == ["c", "a"]
    history.take(1)
    assert history.opened == turns("a", "b")
    history.drop()
    assert (history.titles, history.opened) == (["c"], [])
    assert History.read(history.model_dump(), "me") == history


def test_only_so_much_is_kept() -> None:
    """The store of the browser would be full, and keep nothing more."""
    history = History(owner="me")
    for number in range(MOST_CONVERSATIONS + 3):
        history.is_open = False
        history.put(turns(f"number {number}"))
    assert len(history.conversations) == MOST_CONVERSATIONS
    assert history.titles[0] == f"number {MOST_CONVERSATIONS + 2}"
    history.is_open = False
    history.put(turns("x" * MOST_CHARACTERS))
    assert len(history.conversations) == 1
