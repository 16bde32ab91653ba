"""`suffix` of /v1/completions for models that were trained on CodeGeeX4's layout."""

from __future__ import annotations

import json

import httpx2
import pytest

from helpers_serve import scripted, serving

LAYOUT = """###PATH:
###LANGUAGE:
###MODE:BLOCK
<|code_suffix|>{behind}<|code_prefix|>{before}<|code_middle|><|assistant|>"""
BEFORE, BEHIND = "def add(a, b):\n", "\n\nprint(add(1, 2))\n"
CODE = "    return a + b"


def script(conversation: str) -> str:
    """Writes code where some is missing; else it says what it was asked."""
    question = conversation.rsplit("<|user|>\n", 1)[-1].removesuffix("\n")
    for name in ("add", "mul"):
        before = BEFORE.replace("add", name)
        if question == LAYOUT.format(before=before, behind=BEHIND):
            return "\n" + CODE.replace("+", "+" if name == "add" else "*")
    return "\n" + question


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    kinds = {"codegeex4": "glm4", "chatglm3": "chatglm3"}
    models = {
        name: scripted(tmp_path_factory.mktemp(name), script, name, kind)
        for name, kind in kinds.items()
    }
    with serving(models, engine={"memory_bytes": 1 << 26}) as (address, key):
        headers = {"Authorization": f"Bearer {key}"}
        with httpx2.Client(base_url=address, headers=headers, timeout=60) as found:
            yield found


def ask(client, **more):
    body = {"model": "codegeex4", "prompt": BEFORE, "suffix": BEHIND, "max_tokens": 40}
    return client.post("/v1/completions", json=body | more)


def texts(client, **more):
    return [choice["text"] for choice in ask(client, **more).json()["choices"]]


def test_code_before_a_suffix(client):
    """A model does not see what stands behind, or sees it in a layout that it does not know."""
    done = ask(client).json()
    (choice,) = done["choices"]
    assert (choice["text"], choice["finish_reason"]) == (CODE, "stop")
    assert done["usage"]["prompt_tokens"] > done["usage"]["completion_tokens"] > 3
    prompts = [BEFORE, BEFORE.replace("add", "mul")]
    both = [CODE, CODE.replace("+", "*")]
    assert texts(client, prompt=prompts) == both
    assert texts(client, prompt=prompts, n=2, seed=1) == [both[0], both[0], both[1], both[1]]
    assert texts(client, prompt=prompts, n=1, best_of=2, seed=1) == both
    assert texts(client, echo=True) == [BEFORE + CODE]
    assert ask(client, max_tokens=2).json()["choices"][0]["finish_reason"] == "length"


def test_a_stream_before_a_suffix(client):
    """A stream writes something else than the same call as a whole."""
    whole = ask(client, stream=True, echo=True, n=2, seed=1).text
    lines = [line.removeprefix("data: ") for line in whole.split("\n") if line]
    assert lines.pop() == "[DONE]"
    found = ["", ""]
    for line in lines:
        for choice in json.loads(line)["choices"]:
            found[choice["index"]] += choice["text"]
    assert found == [BEFORE + CODE] * 2


def test_blanks_are_text_there(client):
    """Code in which a blank is spelt is refused by a model that has none."""
    (text,) = texts(client, suffix="# [MASK]", max_tokens=100)
    assert text == LAYOUT.format(before=BEFORE, behind="# [MASK]")


def test_logprobs_before_a_suffix(client):
    """Log-probabilities do not belong to the text."""
    (choice,) = ask(client, logprobs=1).json()["choices"]
    assert "".join(choice["logprobs"]["tokens"]) == CODE


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"model": "chatglm3"}, "chatglm3 fills no blanks"),
        ({"prompt": [5, 6]}, "not with token ids"),
        ({"echo": True, "logprobs": 1}, "not with both"),
        ({"echo": True, "max_tokens": 0}, "something to write"),
    ],
    ids=str,
)
def test_what_goes_with_no_suffix(client, more, said):
    """A suffix is taken and does not count."""
    done = ask(client, **more)
    assert done.status_code == 400
    assert said in done.json()["error"]["message"]
