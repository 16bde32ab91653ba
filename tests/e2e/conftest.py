"""A tiny corpus, tokenizer and run configuration."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openglm.tokenizers.mini import train

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "the",
    "dog",
    "run",
    "to",
    "the",
    "red",
    "house",
    "by",
    "the",
    "sea",
    "春",
    "眠",
    "不",
    "觉",
    "晓",
]
CONFIG = """
[model]
vocab_size = 320
hidden_size = 32
num_layers = 2
num_attention_heads = 4
intermediate_size = 128
max_position_embeddings = 64

[tokenizer]
kind = "mini"
path = "tokenizer.model"

[objective]
token = 0.4
sentence = 0.3
document = 0.3
short_sequence = 0.2

[train]
steps = 12
batch_size = 4
sequence_length = 64
precision = "float32"
seed = 3
log_every = 1
checkpoint_every = 4
validate_every = 6
validation_batches = 2
threads = 1

[optimizer]
learning_rate = 1e-3

[data]
holdout = 0.1

[[data.sources]]
name = "stories"
path = "stories.txt"
"""


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stories.txt, tokenizer.model and run.toml."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    documents = [
        "\n".join(" ".join(rng.choices(WORDS, k=rng.randint(4, 12))) + "." for _ in range(4))
        for _ in range(200)
    ]
    (folder / "stories.txt").write_text("\n\n".join(documents), encoding="utf-8")
    train(iter(documents), folder / "tokenizer.model", vocab_size=320, hard_vocab_limit=False)
    (folder / "tiny.toml").write_text(CONFIG, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def client(served: tuple[str, str]) -> Iterator[Any]:
    """OpenAI's client of a module's server, which refuses what its types do not allow."""
    openai = pytest.importorskip("openai", reason="the official client: '.[dev]'")
    address, key = served
    with openai.OpenAI(
        base_url=f"{address}/v1", api_key=key, _strict_response_validation=True, max_retries=0
    ) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, whose sandbox does not work for root."""
    driver = pytest.importorskip("playwright.sync_api", reason="the driver: '.[dev]'")
    from helpers_web import CHROMIUM

    with driver.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the tests out of the user's folder."""
    monkeypatch.setenv("OPENGLM_HOME", str(tmp_path / "home"))
