"""docs/serving.md is true: its Python runs against the server of its configuration file."""

import dataclasses
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from test_docs import BLOCK, ROOT

from helpers_serve import serving
from openglm.serve.config_file import ServeFile, ServerTable, read_serve_file
from openglm.serve.limits import LimitSettings
from openglm.serve.model_table import ModelTable

PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
(FILE,) = [code for kind, code in BLOCK.findall(PAGE) if kind == "toml"]


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("serve") / "serve.toml"
    path.write_text(FILE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def served(file):
    found = read_serve_file(file)
    known = {model.served_name: model.known() for model in found.models}
    with serving(known, role="admin", aliases=found.aliases) as server:
        yield server


@pytest.mark.parametrize("code", [code for kind, code in BLOCK.findall(PAGE) if kind == "python"])
def test_clients_run(served, code):
    """Example code is copied by users."""
    address, key = served
    told = {"OPENAI_BASE_URL": f"{address}/v1", "OPENAI_API_KEY": key}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | told)


def test_the_command_takes_the_file(file, tmp_path):
    """The file of the page does not start a server, or not the one that it describes."""
    assert "`glm serve --config serve.toml`" in PAGE
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = "from openglm.cli.main import main; main()"
    words = [sys.executable, "-c", code, "serve", "--config", file.name, "--port", str(port)]
    environment = os.environ | {"OPENGLM_HOME": str(tmp_path)}
    with subprocess.Popen(
        words, cwd=file.parent, env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            text = ""
            while "curl" not in text:
                line = server.stdout.readline()
                assert line
                text += line
            headers = {"Authorization": "Bearer " + text.split("Bearer ")[1].strip(" '\n")}
            address = f"http://127.0.0.1:{port}/v1/models"
            found = _get(address, headers)
            assert [model["id"] for model in found["data"]] == ["mini", "gpt-4o-mini"]
            body = {"model": "mini-int8"}
            loaded = httpx2.post(f"{address}/load", json=body, headers=headers, timeout=60)
            assert loaded.json()["status"] == "loaded"
            assert (file.parent / "serve.db").exists()
        finally:
            server.terminate()


def _get(address, headers, seconds=60.0):
    end = time.monotonic() + seconds
    while True:
        try:
            return httpx2.get(address, headers=headers).json()
        except httpx2.TransportError:
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.mark.parametrize("table", [ServeFile, ServerTable, LimitSettings, ModelTable])
def test_every_key_is_described(table):
    """A key of the file is known only to those who read the code."""
    section = PAGE[PAGE.index("## Several models") : PAGE.index("## Keys and limits")]
    for field in dataclasses.fields(table):
        assert re.search(rf"[`\[]{field.name}[`\]]", section), field.name
