"""The integration tests of BigModel's SDKs, as their authors wrote them, against a real server.

They are in no package: OPENGLM_SDK_SOURCES names a folder with clones of both repositories, in
which nothing is changed. What these tests ask for is asked for without them, too, by
tests/clients/bigmodel_suite.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import httpx2
import pytest

import helpers_broken as changed
from helpers_models import random_model, tiny_config
from helpers_sdk import python_with
from helpers_serve import scripted, serving
from openglm.language_model import LanguageModel
from openglm.serve.known import Known

SOURCES = os.environ.get("OPENGLM_SDK_SOURCES")
PLUGINS = Path(__file__).parents[1] / "clients"
CLONES = {"zhipuai": "zhipuai-sdk-python-v4", "zai": "z-ai-sdk-python"}
"""SDK -> its repository, of MetaGLM and of zai-org."""
MODELS = (
    "glm-4", "glm-4.7", "glm-4v", "glm-4.6v", "glm-4.1v-thinking-flash", "charglm", "charglm-3",
    "codegeex-4", "emohaa", "embedding-2",
)  # fmt: skip
"""As these tests name them; all are the same here. The vectors of another one are wider."""
NOT_SERVED = {
    "agents", "assistant", "audio", "file_parser", "finetuning", "images", "knowledge",
    "moderation", "tools", "transcriptions", "videos", "voice_clone", "web_reader", "web_search",
}  # fmt: skip
"""Files of tests whose paths answer 404 here, with an error object that says so."""
WEB, PICTURES = "the web is not searched", "pictures are not read"
BOTH = {
    "chat.completions": WEB,
    "chat.async_completions": WEB,
    "chat.completions_enable_web_search": WEB,
    "chat.completions_vis_base64": PICTURES,
    "vlm_thinking.completions_vlm_thinking": PICTURES,
    "vlm_thinking.completions_vlm_thinking_stream": PICTURES,
    "emohaa.completions_emohaa": "ends with the assistant's words: continued, or answered?",
    "batches.batch_result": "compares with a file that the repository lacks",
}
OUT_OF_SCOPE = {
    "zhipuai": BOTH | {"chat.completions_vis": PICTURES},
    "zai": BOTH | {"chat.completions_stream_with_tools": PICTURES},
}
"""SDK -> test -> why it fails here; docs/serving.md tells it."""
NUM_TESTS = {"zhipuai": 34, "zai": 36}
BATCH = "batch_1790291013237211136"
ANSWERS = ("1014908807577524653187108", "1014908592669352541651237")
INPUT, OUTPUT = "20240514_ea19d21b-d256-4586-b0df-e80a45e3c286", "file-QDpVyDIhxj8mcFiduUydNqQN"
UNLESS_PASSED = ("failure", "error", "skipped")
WIDTH = 768
"""Of a vector; they ask for 512 numbers of it."""


def own_ids(ids: Mapping[str, str]) -> changed.Around:
    """A server at which what the authors left at theirs has the ids of what was put here."""

    def swapped(text: str) -> str:
        for theirs, ours in ids.items():
            text = text.replace(theirs, ours)
        return text

    async def body(content: bytes) -> bytes:
        is_text = any(theirs.encode() in content for theirs in ids)
        return swapped(content.decode()).encode() if is_text else content

    path = changed.changing(lambda scope, key: {**scope, "path": swapped(scope["path"])})
    return lambda app, key: path(changed.reading(body)(app, key), key)


def leave(client: httpx2.Client, suite: Path) -> dict[str, str]:
    """Puts there what the tests look for; its ids by those that they ask for."""

    def post(path: str, **asked: object) -> str:
        found = client.post(path, **asked)
        assert found.status_code == 200, found.text
        return str(found.json()["id"])

    def upload(lines: bytes) -> str:
        return post("/files", files={"file": ("lines.jsonl", lines)}, data={"purpose": "batch"})

    lines = (suite / "batchinput.jsonl").read_bytes()
    waiting = upload(lines.replace(b'"glm-4"', b'"absent"').replace(b'"glm-4.7"', b'"absent"'))
    batch = {"input_file_id": waiting, "endpoint": "/v4/chat/completions"}
    question = {"model": "glm-4", "messages": [{"role": "user", "content": "hi"}]}
    answer = post("/async/chat/completions", json=question)
    while client.get(f"/async-result/{answer}").json()["task_status"] == "PROCESSING":
        time.sleep(0.05)
    every = {BATCH: post("/batches", json=batch), INPUT: upload(lines), OUTPUT: waiting}
    return every | dict.fromkeys(ANSWERS, answer)


def outcomes(report: Path) -> dict[str, str]:
    """File and test -> what went wrong with it, or nothing."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        wrong = [one.get("message", "") for one in case if one.tag in UNLESS_PASSED]
        file = case.get("classname", "").rpartition("test_")[2].partition(".")[0]
        found[f"{file}.{case.get('name', '').removeprefix('test_')}"] = "; ".join(wrong)
    return found


@pytest.mark.skipif(
    SOURCES is None, reason="OPENGLM_SDK_SOURCES names no clones of the SDKs (docs/serving.md)"
)
@pytest.mark.parametrize("sdk", CLONES)
def test_their_own_tests(sdk, tmp_path):
    """A program that runs at BigModel does not run here."""
    shutil.copytree(Path(SOURCES) / CLONES[sdk] / "tests", tmp_path / "tests")
    suite = tmp_path / "tests" / "integration_tests"
    files = {path.stem.removeprefix("test_") for path in suite.glob("test_*.py")}
    told = [suite / f"test_{name}.py" for name in sorted(files - NOT_SERVED)]
    model = scripted(tmp_path / "model", lambda conversation: "\nHello!")
    config = tiny_config(hidden_size=WIDTH, vocab_size=model.tokenizer.vocab_size)
    wide = LanguageModel(random_model(config), model.tokenizer, "embedding-3")
    absent = Known(name="absent", read=lambda: model, loads_at_start=False)
    ids: dict[str, str] = {}
    served = {**dict.fromkeys(MODELS, model), "embedding-3": wide, "absent": absent}
    with serving(served, around=own_ids(ids)) as (address, key):
        url = f"{address}/api/paas/v4"
        headers = {"Authorization": f"Bearer {key}"}
        with httpx2.Client(base_url=url, headers=headers, timeout=60) as client:
            ids |= leave(client, suite)
        name = sdk.upper()
        subprocess.run(
            [
                python_with(sdk), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull,
                "-p", "strict_sdk", f"--junit-xml={tmp_path}/report.xml", *told,
            ],
            cwd=tmp_path,
            env={
                **os.environ, "OPENGLM_SDK": sdk, "PYTHONPATH": str(PLUGINS),
                f"{name}_API_KEY": key, f"{name}_BASE_URL": url,
            },
            capture_output=True,
            check=False,
        )  # fmt: skip
    found = outcomes(tmp_path / "report.xml")
    failed = {test: wrong for test, wrong in found.items() if wrong}
    assert failed.keys() == OUT_OF_SCOPE[sdk].keys(), failed
    assert len(found) == NUM_TESTS[sdk]
