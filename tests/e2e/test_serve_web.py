"""The web page in a real browser, and what strangers see of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the web page needs gradio")
pytest.importorskip("playwright", reason="these tests drive a browser by playwright")

import httpx2
from gradio.queueing import Queue
from playwright.sync_api import Browser, Page, expect

import openglm
from helpers_serve import Script, scripted, serving
from helpers_web import LONGER, log_in, needs_browser, reading, session_of
from openglm.attacks import Target, choose, launch
from openglm.serve.web.page import POLL_SECONDS

ENGINE = {"memory_bytes": 1 << 28}
ANSWER = "So **bold**, `x = 1`, and $a^2$. <script>document.title = 'stolen'</script>"


@pytest.fixture(scope="module", autouse=True)
def _own_home_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The server of a module is older than the folder of a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENGLM_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, str]]:
    """The model mini with the page at /, and a key of an admin."""
    models = {"mini": openglm.load("mini")}
    with serving(models, role="admin", web_path="/", engine=ENGINE) as found:
        yield found


def wait_until_idle(address: str, key: str) -> None:
    """Waits until the engine of mini has nothing to do."""
    headers = {"Authorization": f"Bearer {key}"}
    idle = 'openglm_num_requests_running{model_name="mini"} 0.0'
    for _ in range(100):
        if idle in httpx2.get(f"{address}/metrics", headers=headers).text:
            return
        time.sleep(0.1)
    pytest.fail("the request runs on")


def test_nobody_looks_at_a_page_for_ever(
    server: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradio wakes the event loop 2,000 times a second, and every stream is slower for it."""
    looked: dict[int, list[float]] = {}

    def length(queue: Queue) -> int:
        looked.setdefault(id(queue), []).append(time.monotonic())
        return 0

    monkeypatch.setattr(Queue, "__len__", length)
    time.sleep(4 * POLL_SECONDS)
    monkeypatch.undo()
    assert looked
    for times in looked.values():
        assert all(later - one > 0.9 * POLL_SECONDS for one, later in pairwise(times))


PATHS = (
    "/en/",
    "/zh/",
    "/en/config",
    "/en/theme.css",
    "/en/assets/index.js",
    "/en/static/fonts/x.woff2",
    "/en/gradio_api/info",
    "/en/gradio_api/queue/data?session_hash=x",
    "/en/gradio_api/file=/etc/passwd",
    "/en/gradio_api/upload",
    "/en/monitoring",
    "/config",
    "/assets/index.js",
    "/gradio_api/info",
    "//en/",
    "/en/../en/config",
    "/%65n/config",
)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS"])
def test_strangers_get_nothing_but_the_form(
    server: tuple[str, str], method: str, path: str
) -> None:
    """Somebody without a key would see the page, its files or its calls."""
    address, _ = server
    headers = {"Cookie": "openglm_session=guess", "X-Request-Id": "mine"}
    answer = httpx2.request(method, address + path, headers=headers)
    assert (answer.status_code, answer.headers["x-request-id"]) == (401, "mine")
    assert "gradio" not in answer.text


def test_the_form_is_a_form_and_nothing_else(server: tuple[str, str]) -> None:
    """The form could run scripts, be framed, or tell what is behind it."""
    answer = httpx2.get(server[0])
    assert answer.status_code == 401
    assert 'type="password"' in answer.text
    assert "<script" not in answer.text
    assert "gradio" not in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy


@pytest.mark.parametrize("row", ["A1", "A8"])
def test_the_page_opens_nothing_to_attackers(server: tuple[str, str], row: str) -> None:
    """`glm attack` would find a server with a page open that is not, or one that is."""
    with closing(Target(*server, model="mini")) as target:
        assert launch(*choose([row]), target).state == "withstood"


def test_who_reads_log_in_is_shown_the_form(server: tuple[str, str]) -> None:
    """A bookmark of /login would get an error of the API."""
    answer = httpx2.get(f"{server[0]}/login", follow_redirects=True)
    assert 'type="password"' in answer.text


def test_a_session_is_a_strict_cookie_that_ends(server: tuple[str, str]) -> None:
    """A script or another site could use the session, or it would outlive the log-out."""
    address, key = server
    answer = log_in(address, key)
    cookie = answer.headers["set-cookie"].lower()
    assert answer.status_code == 303
    assert key.lower() not in cookie
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    headers = {"Cookie": answer.headers["set-cookie"].partition(";")[0]}
    assert httpx2.get(f"{address}/en/config", headers=headers).status_code == 200
    httpx2.post(f"{address}/logout", headers=headers)
    assert httpx2.get(f"{address}/en/config", headers=headers).status_code == 401


@pytest.mark.parametrize("key", ["", "x", "a.b", "a.b.c", "密钥", "x" * 100_000])
def test_what_is_no_key_lets_nobody_in(server: tuple[str, str], key: str) -> None:
    """Something that is no key would open a session, or break the server."""
    answer = log_in(server[0], key)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers


def test_a_session_opens_the_page_alone(server: tuple[str, str]) -> None:
    """A cookie would open the API, where other sites could make a browser send it."""
    address, key = server
    headers = session_of(address, key)
    assert httpx2.get(f"{address}/v1/models", headers=headers).status_code == 401
    assert httpx2.get(f"{address}/metrics", headers=headers).status_code == 401
    for path in ("gradio_api/file=/etc/passwd", "gradio_api/upload", "monitoring", "login"):
        assert httpx2.get(f"{address}/en/{path}", headers=headers).status_code == 404
    file = {"data": [{"path": "http://evil.example", "meta": {"_type": "gradio.FileData"}}]}
    answer = httpx2.post(f"{address}/en/gradio_api/queue/join", headers=headers, json=file)
    assert answer.status_code == 400
    other = headers | {"Origin": "http://evil.example"}
    assert httpx2.post(f"{address}/en/gradio_api/queue/join", headers=other).status_code == 403


def test_language_follows_the_browser(server: tuple[str, str]) -> None:
    """A Chinese browser would get an English page."""
    address, key = server
    headers = session_of(address, key)
    for accepted, language in (("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("en;q=0.5,fr", "en")):
        answer = httpx2.get(address, headers=headers | {"Accept-Language": accepted})
        assert answer.headers["location"] == f"/{language}/"


def test_the_policy_allows_no_foreign_source(server: tuple[str, str]) -> None:
    """A page that shows a model's words could load pictures or scripts from elsewhere."""
    address, key = server
    answer = httpx2.get(f"{address}/en/", headers=session_of(address, key))
    policy = answer.headers["content-security-policy"]
    assert "unsafe-eval" not in policy
    assert "http" not in policy
    scripts = policy.partition("script-src")[2].partition(";")[0]
    assert "unsafe-inline" not in scripts
    assert "*" not in policy


def test_the_page_is_found_without_its_last_slash() -> None:
    """Who types the address that `glm serve` prints would be told that a key is missing."""
    models = {"mini": openglm.load("mini")}
    with serving(models, web_path="/page", engine=ENGINE) as (address, key):
        assert 'type="password"' in httpx2.get(f"{address}/page").text
        headers = session_of(f"{address}/page", key)
        answer = httpx2.get(f"{address}/page", headers=headers)
        assert answer.headers["location"] == "/page/en/"
        assert httpx2.get(f"{address}/pages").status_code == 401


def test_without_a_path_there_is_no_page() -> None:
    """--no-web would serve the form all the same."""
    with serving({"mini": openglm.load("mini")}, engine=ENGINE) as (address, key):
        assert httpx2.get(address).status_code == 401
        assert httpx2.post(f"{address}/login", data={"key": key}).status_code == 401


@needs_browser
def test_fills_blanks_and_draws_what_was_seen(browser: Browser, server: tuple[str, str]) -> None:
    """The tab would not fill, or show neither probabilities nor the mask."""
    with reading(browser, *server) as page:
        page.get_by_role("tab", name="Fill").click()
        page.fill("#fill-text textarea", "The [MASK] sat on the [MASK]. <b>")
        page.click("#fill-go")
        expect(page.locator("#fill-picture svg")).to_be_visible(timeout=30_000)
        result = page.locator("#fill-result")
        expect(result).to_contain_text("sat on the")
        expect(result).to_contain_text("<b>")
        assert result.locator("mark").count() == 2
        assert result.locator("table").count() == 2
        assert "%" in result.locator(".bar").first.inner_text()
        assert page.locator("#fill-picture circle").count() >= 2 * 13


@needs_browser
def test_writes_and_stops(browser: Browser, server: tuple[str, str]) -> None:
    """Text would come at the end only, or the engine write on after Stop."""
    address, key = server
    with reading(browser, address, key) as page:
        page.get_by_role("tab", name="Write").click()
        text = page.locator("#write-text textarea")
        text.fill("Once upon a time")
        page.click("#write-go")
        expect(page.locator("#write-text textarea")).to_have_value(LONGER)
        page.click("#write-stop")
        wait_until_idle(address, key)
        written = text.input_value()
        page.wait_for_timeout(500)
        assert text.input_value() == written


@needs_browser
def test_switches_language_and_light(browser: Browser, server: tuple[str, str]) -> None:
    """The switches would lead nowhere, or one undo the other."""
    with reading(browser, *server, goes_on=True, locale="zh-CN") as page:
        expect(page.get_by_role("tab", name="填空")).to_be_visible()
        page.get_by_role("link", name="English").click()
        expect(page.get_by_role("tab", name="Fill")).to_be_visible()
        page.get_by_role("link", name="Dark").click()
        expect(page.locator("body.dark")).to_be_visible()
        page.get_by_role("link", name="中文").click()
        expect(page.get_by_role("tab", name="填空")).to_be_visible()
        expect(page.locator("body.dark")).to_be_visible()


@needs_browser
def test_shows_models_and_makes_keys(browser: Browser, server: tuple[str, str]) -> None:
    """An admin could not see the models, or make and end keys; a session would outlive its key."""
    address, _ = server
    with reading(browser, *server) as page:
        page.get_by_role("tab", name="Models").click()
        expect(page.locator("#models-cards")).to_contain_text("mini")
        page.get_by_role("tab", name="API").click()
        expect(page.locator("#api-python")).to_contain_text(f"{address}/v1")
        page.fill("#keys-name input, #keys-name textarea", "from the page")
        page.click("#keys-make")
        made = page.locator("#keys-made input, #keys-made textarea")
        expect(made).to_be_visible()
        key = made.input_value()
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx2.get(f"{address}/v1/models", headers=headers).status_code == 200
        session = session_of(address, key)
        assert httpx2.get(f"{address}/en/config", headers=session).status_code == 200
        page.click("#keys-which input")
        page.get_by_role("option", name="from the page").click()
        page.click("#keys-end")
        expect(page.locator("#keys-table")).to_contain_text("revoked")
        assert httpx2.get(f"{address}/v1/models", headers=headers).status_code == 401
        assert httpx2.get(f"{address}/en/config", headers=session).status_code == 401


@contextmanager
def chatting(
    browser: Browser, folder: Path, script: Script, goes_on: bool = False
) -> Iterator[Page]:
    """The page of a chat model that answers as `script` says, at /page, of a user."""
    models = {"glm-4": scripted(folder / "glm-4", script)}
    with (
        serving(models, web_path="/page", engine={"memory_bytes": 1 << 24}) as (address, key),
        reading(browser, f"{address}/page", key, goes_on) as page,
    ):
        yield page


def ask(page: Page, question: str) -> None:
    page.fill("#chat-asked textarea", question)
    page.click("#chat-go")


@needs_browser
def test_chats(browser: Browser, tmp_path: Path) -> None:
    """An answer would not be shown as it is written, or its words run as scripts."""
    asked: list[str] = []

    def script(conversation: str) -> str:
        asked.append(conversation)
        return ANSWER

    with chatting(browser, tmp_path, script) as page:
        page.fill("#chat-system textarea", "Be brief.")
        ask(page, "What is x?")
        turns = page.locator("#chat-turns")
        expect(turns.locator("strong", has_text="bold")).to_be_visible()
        expect(turns.locator("code", has_text="x = 1")).to_be_visible()
        expect(turns.locator(".katex").first).to_be_visible()
        assert page.title() == "openglm"
        assert "Be brief." in asked[-1]
        assert "What is x?" in asked[-1]
        page.get_by_role("tab", name="API").click()
        expect(page.locator("#api-curl")).to_contain_text("chat/completions")
        assert not page.locator("#keys-make").is_visible()  # no admin


@needs_browser
def test_answers_anew_and_edits(browser: Browser, tmp_path: Path) -> None:
    """A second try would see the first, or an edited question be asked behind the old one."""
    asked: list[str] = []  # once for each token

    def script(conversation: str) -> str:
        asked.append(conversation)
        return f"answer {conversation.count('?')}"

    with chatting(browser, tmp_path, script) as page:
        turns = page.locator("#chat-turns")
        ask(page, "one?")
        expect(turns).to_contain_text("answer 1")
        ask(page, "two?")
        expect(turns).to_contain_text("answer 2")
        count, second = len(asked), asked[-1]
        page.get_by_label("Retry").last.click()
        for _ in range(100):
            page.wait_for_timeout(100)
            if len(asked) > count:
                break
        assert len(asked) > count
        assert asked[-1] == second
        expect(turns).to_contain_text("answer 2")
        page.get_by_label("Edit").first.click()
        page.locator("#chat-turns textarea").fill("three??")
        page.get_by_label("Submit").first.click()
        expect(turns).not_to_contain_text("two?")
        expect(turns).to_contain_text("answer 2")
        assert "one?" not in asked[-1]
        assert "three??" in asked[-1]


@needs_browser
def test_keeps_conversations_in_the_browser(browser: Browser, tmp_path: Path) -> None:
    """A reload would lose a conversation, or one that was deleted or logged out of would stay."""
    with chatting(browser, tmp_path, lambda conversation: "yes", goes_on=True) as page:
        turns, history = page.locator("#chat-turns"), page.locator("#chat-history")
        ask(page, "Is this the first?")
        expect(history).to_contain_text("Is this the first?")
        page.click("#chat-new")
        expect(turns).not_to_contain_text("Is this the first?")
        ask(page, "And this?")
        expect(history).to_contain_text("And this?")
        page.reload()
        expect(turns).to_contain_text("And this?")
        history.get_by_text("Is this the first?").click()
        expect(turns).to_contain_text("Is this the first?")
        with page.expect_download() as download:
            page.click("#chat-export a")
        saved = Path(download.value.path()).read_text(encoding="utf-8")
        assert "Is this the first?" in saved
        assert "yes" in saved
        page.click("#chat-drop")
        expect(history).not_to_contain_text("Is this the first?")
        page.get_by_role("button", name="Log out").click()
        expect(page.locator("#key")).to_be_visible()
        assert page.evaluate("localStorage.length") == 0


@needs_browser
def test_stops_an_answer(browser: Browser, tmp_path: Path) -> None:
    """A long answer could not be ended, or would be lost when it is."""
    with chatting(browser, tmp_path, lambda conversation: "word " * 400) as page:
        turns = page.locator("#chat-turns")
        ask(page, "Talk!")
        expect(turns).to_contain_text("word word")
        page.click("#chat-stop")
        expect(page.locator("#chat-history")).to_contain_text("Talk!")
        written = turns.inner_text()
        page.wait_for_timeout(500)
        assert turns.inner_text() == written
        assert 0 < written.count("word") < 400


@needs_browser
def test_a_reader_who_leaves_ends_the_call(browser: Browser, server: tuple[str, str]) -> None:
    """The engine would write on for nobody."""
    address, key = server
    with reading(browser, address, key) as page:
        page.get_by_role("tab", name="Write").click()
        page.locator("#write-text textarea").fill("Once upon a time")
        page.click("#write-go")
        expect(page.locator("#write-text textarea")).to_have_value(LONGER)
    wait_until_idle(address, key)


@needs_browser
def test_limits_hold_on_the_page(browser: Browser, tmp_path: Path) -> None:
    """The page would be a way around the limits of a key, or say nothing of them."""
    with serving({"mini": openglm.load("mini")}, 1, web_path="/", engine=ENGINE) as (address, key):
        with reading(browser, address, key) as page:
            page.get_by_role("tab", name="Fill").click()
            page.click("#fill-go")
            expect(page.locator("#fill-result mark").first).to_be_visible()
            page.click("#fill-go")
            expect(page.get_by_text("1 requests a minute")).to_be_visible()
        headers = {"Authorization": f"Bearer {key}"}
        metrics = httpx2.get(f"{address}/metrics", headers=headers).text
        assert (
            'openglm_request_success_total{finished_reason="stop",model_name="mini"} 1.0' in metrics
        )
