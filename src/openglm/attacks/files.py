"""Attacks on uploaded files, and on models: with their names, and on what is somebody else's."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from urllib.parse import quote

from openglm.attacks.attack import refused, unharmed
from openglm.attacks.target import Answer, NotApplicable, Target

UPLOADS = ("/v1/files", "/api/paas/v4/files")
LINE = b'{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n'
NAMES = (
    "../../x.jsonl", "..\\..\\x.jsonl", "/etc/cron.d/x", "C:\\x.jsonl", "a\x00b.jsonl", "x" * 300,
    "CON", "..", ".", "", "%2e%2e%2fx", "\u2025/x", "x.jsonl\r\nX-Injected: 1", "~root", "$(id)",
)  # fmt: skip
PAGES = {
    "x.html": b"<!doctype html><script>alert(1)</script>",
    "x.svg": b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>',
}
SHOWN_TYPES = ("text/html", "image/svg", "text/xml", "application/xhtml", "application/xml")
"""What a browser runs programs of."""
MODELS = (
    "./{0}", "../{0}", "x/../{0}", "/{0}", "{0}/", "{0}\x00", "../models/{0}", "/models/{0}",
    "sha256:../../{0}", "file:{0}", "../../../../etc", "/etc/passwd", "C:\\windows\\win.ini",
)  # fmt: skip
"""Paths that somebody may take for the model of this name, or for a folder with one."""
PATHS = ("../../../../etc/passwd", "/etc/passwd", "..", "serve.db", "file-..%2fserve.key")


def hostile_names(target: Target) -> Iterator[str]:
    """F1: a file's name is data, and never a path."""
    for upload in _uploads(target):
        for name in NAMES:
            found = _upload(target, upload, name)
            yield from unharmed(f"{upload} of {name[:20]!r}", found)
            told = found.json() if found.status == 200 else None
            if told is None:
                continue
            if any(part in str(told.get("id")) for part in ("/", "\\", "..", name[:20] or "/")):
                yield f"{upload} of {name[:20]!r}: the id {told.get('id')!r} is made of the name"
            if "x-injected" in found.headers:
                yield f"{upload} of {name[:20]!r}: it became a header"
            content = target.send("GET", f"{upload}/{told.get('id')}/content")
            if content.text.encode() != LINE:
                yield f"{upload} of {name[:20]!r}: the content is lost"
            target.send("DELETE", f"{upload}/{told.get('id')}")


def hostile_ids(target: Target) -> Iterator[str]:
    """F2: an id is looked up, and never a path."""
    for upload in _uploads(target):
        for path in PATHS:
            encoded = base64.urlsafe_b64encode(path.encode()).decode()
            for one in (quote(path, safe=""), encoded, encoded.rstrip("="), f"file-{encoded}"):
                for method, end in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
                    found = target.send(method, f"{upload}/{one}{end}")
                    yield from refused(f"{method} {upload}/{one}{end}", found, (400, 404, 405))
            found = target.send("GET", f"{upload}?purpose={quote(path)}&after={quote(path)}")
            yield from unharmed(f"a list with purpose={path}", found)
            if "root:" in found.text:
                yield f"a list with purpose={path} shows a file of the system"


def same_name(target: Target) -> Iterator[str]:
    """F3: two files of one name are two files."""
    for upload in _uploads(target):
        contents = [LINE, LINE * 2]
        answers = [_upload(target, upload, "same.jsonl", content) for content in contents]
        ids = [str((found.json() or {}).get("id")) for found in answers]
        for one, content in zip(ids, contents, strict=True):
            if target.send("GET", f"{upload}/{one}/content").text.encode() != content:
                yield f"{upload}: of two files of one name, one is lost"
            target.send("DELETE", f"{upload}/{one}")


def shown_pages(target: Target) -> Iterator[str]:
    """F8: what a user uploaded is saved by who opens it, and not shown as a page of the server."""
    for upload in _uploads(target):
        for name, page in PAGES.items():
            one = (_upload(target, upload, name, page).json() or {}).get("id")
            found = target.send("GET", f"{upload}/{one}/content")
            if found.status != 200:
                continue
            told = found.headers
            if told.get("content-type", "").startswith(SHOWN_TYPES):
                yield f"{upload}/ID/content of {name} is {told['content-type']}"
            if not told.get("content-disposition", "").startswith("attachment"):
                yield f"{upload}/ID/content of {name} is shown, and not saved"
            if told.get("x-content-type-options") != "nosniff":
                yield f"{upload}/ID/content of {name}: browsers may guess its type"
            target.send("DELETE", f"{upload}/{one}")


def models_by_path(target: Target) -> Iterator[str]:
    """F9: a model is found among those that are served, and never in a folder."""
    for pattern in MODELS:
        name = pattern.format(target.model)
        for path in target.calls:
            found = target.ask(path, model=name)
            yield from refused(f"{path} of the model {name!r}", found)
        for path in ("/v1/models/load", "/v1/tokenize"):
            found = target.send("POST", path, json={"model": name, "text": "x"})
            yield from refused(f"{path} of the model {name!r}", found)
        found = target.send("GET", f"/v1/models/{quote(name, safe='')}")
        yield from refused(f"/v1/models/{name!r}", found)


def files_of_others(target: Target) -> Iterator[str]:
    """A9 with a second key: what one user has is not there for another."""
    uploads = _uploads(target)
    if target.other_key is None:
        raise NotApplicable("needs a second key")
    for upload in uploads:
        one = str((_upload(target, upload, "mine.jsonl").json() or {}).get("id"))
        for method, end in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            found = target.send(method, f"{upload}/{one}{end}", key=target.other_key)
            yield from refused(f"{method} {upload} of another user", found, (403, 404, 405))
        if one in target.send("GET", upload, key=target.other_key).text:
            yield f"{upload} lists the files of other users"
        target.send("DELETE", f"{upload}/{one}")


def _uploads(target: Target) -> list[str]:
    """Where files can be uploaded."""
    found = [path for path in UPLOADS if target.send("GET", path).status == 200]
    if not found:
        raise NotApplicable("no files are kept here")
    return found


def _upload(target: Target, path: str, name: str, content: bytes = LINE) -> Answer:
    parts = {"file": (name, content, "application/octet-stream")}
    return target.send("POST", path, files=parts, data={"purpose": "batch"})
