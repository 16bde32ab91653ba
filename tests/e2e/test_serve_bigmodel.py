"""The official clients of BigModel, each in an environment of its own, against a real server."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import httpx2
import pytest

import openglm
from helpers_sdk import PACKAGES, python_with
from helpers_serve import scripted, serving

PROGRAMS = Path(__file__).parents[1] / "clients"
GAP = """###REFERENCE:
###PATH:other.py
import math
###PATH:sum.py
###LANGUAGE:Python
###MODE:BLOCK
<|code_suffix|>

print(add(1, 2))
<|code_prefix|>def add(a, b):
<|code_middle|><|assistant|>
"""


def script(conversation: str) -> str:
    question = conversation.rsplit("<|user|>\n", 1)[-1]
    if question.removesuffix("\n") == GAP.removesuffix("\n"):
        return "\n    return a + b"
    if "weather" in question:
        return '\nget_weather\n{"city": "北京"}'.lstrip()
    if "separators" in question:
        return "\na\u2028b\u2029c\u0085d"
    if "who are you" in question:
        return "\n" + conversation.partition("你要扮演")[2].partition("。")[0]
    return "\nHello, 你好👋!"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Address and key of a server, and of one with a key for one call a minute."""
    folder = tmp_path_factory.mktemp("models")
    models = {
        "glm-4": scripted(folder / "glm4", script),
        "chatglm3": scripted(folder / "chatglm3", script, kind="chatglm3"),
        "mini": openglm.load(),
    }
    one = {"glm-4": scripted(folder / "glm4", script)}
    with serving(models) as many, serving(one, requests_per_minute=1) as few:
        yield *many, *few


@pytest.mark.parametrize("program", ["bigmodel.py", "bigmodel_suite.py"])
@pytest.mark.parametrize("sdk", PACKAGES)
def test_a_client(sdk, program, served):
    """Programs that were written for BigModel do not run, or get other answers."""
    names = ("URL", "KEY", "LIMITED_URL", "LIMITED_KEY")
    told = {f"OPENGLM_{name}": value for name, value in zip(names, served, strict=True)}
    options = ["-q", "-p", "no:cacheprovider", "--noconftest", "-c", os.devnull]
    done = subprocess.run(
        [python_with(sdk), "-m", "pytest", *options, PROGRAMS / program],
        env={**os.environ, **told, "OPENGLM_SDK": sdk, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_code_is_filled_in_by_a_model_with_blanks(served):
    """`extra` is not what the model would fill the blank with."""
    address, key, *_ = served
    target = {"language": "python", "code_prefix": "def f(a):\n", "code_suffix": "\n"}
    body = {"model": "mini", "messages": [], "do_sample": False, "max_tokens": 8}
    done = httpx2.post(
        f"{address}/api/paas/v4/chat/completions",
        json=body | {"extra": {"target": target}, "meta": {"bot_name": "x"}},
        headers={"Authorization": f"Bearer {key}"},
        timeout=60,
    )
    text = "# language: Python\ndef f(a):\n[sMASK]\n"
    (blank,) = openglm.load().fill(text, max_tokens=8, temperature=0).blanks
    assert done.json()["choices"][0]["message"]["content"] == blank.text
    assert done.headers["x-openglm-ignored"] == "meta"


@pytest.mark.parametrize("more", [{"do_sample": False}, {"temperature": 0}])
def test_equal_answers_are_as_many_as_were_asked_for(served, more):
    """One choice comes where three were asked for."""
    address, key, *_ = served
    messages = [{"role": "user", "content": "hi"}]
    headers = {"Authorization": f"Bearer {key}"}
    body = {"model": "glm-4", "messages": messages, "n": 3} | more
    url = f"{address}/api/paas/v4/chat/completions"
    choices = httpx2.post(url, json=body, headers=headers, timeout=60).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in choices}) == 1
    streamed = httpx2.post(url, json=body | {"stream": True}, headers=headers, timeout=60).text
    assert all(f'"index":{index}' in streamed.replace(" ", "") for index in range(3))
