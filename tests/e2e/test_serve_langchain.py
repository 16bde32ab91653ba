"""LangChain's standard tests, in an environment of their own, with a real server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import openglm
from helpers_serve import scripted, serving

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "langchain-core==1.7.2", "langchain-openai==1.7.3", "langchain-tests==1.1.9",
    "langchain-community==0.4.2", "pyjwt==2.15.1", "httpx-sse==0.4.3",
)  # fmt: skip
JOKE = {"setup": "Why did the cat sit on the computer?", "punchline": "To watch the mouse."}
ARGUMENTS = {
    "magic_function": {"input": 3},
    "magic_function_no_args": {},
    "greeting_generator": {"answer_style": "Pirate"},
    "my_adder_tool": {"a": 3, "b": 4},
    "get_weather": {"location": "San Francisco"},
    "unicode_customer": {"customer_name": "", "description": "a company"},
    "Joke": JOKE,
    "JokeDict": JOKE,
}
"""What a model that understands the tests' questions would call each tool with."""


def script(conversation: str) -> str:
    """Calls the first tool it is offered, tells the joke, or greets."""
    if conversation.rfind("<|observation|>") > conversation.rfind("<|user|>"):
        return "\nIt's done."
    question = conversation.rsplit("<|user|>", 1)[-1]
    if offered := re.search(r"^## (\w+)$", conversation, re.MULTILINE):
        arguments = dict(ARGUMENTS[offered[1]])
        if named := re.search("named '(.+?)'", question):
            arguments["customer_name"] = named[1]
        return f"{offered[1]}\n{json.dumps(arguments, ensure_ascii=False)}"
    if "joke" in question:
        return "\n" + json.dumps(JOKE)
    return "\nHello! How are you, 朋友?"


def python() -> Path:
    """The interpreter of an environment with LangChain, made if it is not there."""
    folder = ROOT / ".venv-langchain"
    found = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [found, "-m", "pip", "install", "--quiet", *PACKAGES]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"LangChain cannot be installed here: {done.stderr[-200:]}")
        (folder / "ready").touch()
    return found


def test_langchains_standard_tests(tmp_path):
    """Programs that are built on LangChain do not run, or get other answers."""
    pytest.importorskip("xgrammar", reason="structured output needs it")
    models = {"glm-4": scripted(tmp_path, script), "mini": openglm.load()}
    with serving(models, aliases={"gpt-4o": "glm-4"}) as (address, key):
        program = ROOT / "tests" / "clients" / "langchain_standard.py"
        options = ["-q", "-p", "no:cacheprovider", "--noconftest", "-c", os.devnull]
        # one loop for all tests: ChatOpenAI keeps its connections
        options += ["--asyncio-mode=auto", "-o", "asyncio_default_test_loop_scope=session"]
        told = {"OPENGLM_URL": address, "OPENGLM_KEY": key, "PYTHONPATH": ""}
        done = subprocess.run(
            [python(), "-m", "pytest", *options, program],
            env={**os.environ, **told},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-4000:]
