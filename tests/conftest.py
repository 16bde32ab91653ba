"""What all tests share: small vocabularies written or trained on the spot, and hypothesis.

The vocabularies of `bert`, `gpt2`, `roberta` and `chinese` are small enough to write the expected
ids out by hand; `trained_gpt2` and `mini` are trained, for the round-trip properties.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from helpers_data import (
    BPE_MERGES,
    CHINESE_CORPUS,
    CORPUS,
    WORDPIECES,
    byte_alphabet,
    write_bpe,
    write_wordpiece,
)
from helpers_hub import HubServer, running
from openglm.tokenizers.bpe import BytePairTokenizer
from openglm.tokenizers.chinese import ChineseTokenizer
from openglm.tokenizers.mini import MiniTokenizer, train
from openglm.tokenizers.wordpiece import WordPieceTokenizer

# The same examples on every run; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.register_profile("explore", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

REPOSITORY = Path(__file__).parent.parent


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what was left out and why, once for each reason."""
    left_out = terminalreporter.getreports("skipped")
    reasons = Counter(str(one.longrepr[2]).removeprefix("Skipped: ") for one in left_out)
    for reason, number in reasons.most_common():
        terminalreporter.write_line(f"{number} skipped: {reason}")


@pytest.fixture(scope="session")
def official_tokenizers() -> Path:
    """The folder of official tokenizer files, which the repository may not contain."""
    shared = Path(os.environ.get("OPENGLM_SHARED") or REPOSITORY.parent / "shared")
    folder = shared / "tokenizers"
    if not folder.is_dir():
        pytest.skip(f"no official tokenizer files at {folder}; set OPENGLM_SHARED")
    return folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> WordPieceTokenizer:
    """118 wordpieces: 104 "the", 105 "cat", ...; see `WORDPIECES`."""
    return WordPieceTokenizer(write_wordpiece(tmp_path_factory.mktemp("bert"), WORDPIECES))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> BytePairTokenizer:
    """The 256 bytes in GPT-2's order (0-255), seven merges (256-262), `<|endoftext|>` (263)."""
    tokens = [*byte_alphabet(), *("".join(pair) for pair in BPE_MERGES), "<|endoftext|>"]
    return BytePairTokenizer(write_bpe(tmp_path_factory.mktemp("gpt2"), tokens), "gpt2")


@pytest.fixture(scope="session")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> BytePairTokenizer:
    """Four command tokens (0-3), the bytes (4-259), seven merges (260-266), `<mask>` (267)."""
    merged = ("".join(pair) for pair in BPE_MERGES)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *byte_alphabet(), *merged, "<mask>"]
    return BytePairTokenizer(write_bpe(tmp_path_factory.mktemp("roberta"), tokens), "roberta")


@pytest.fixture(scope="session")
def trained_gpt2(tmp_path_factory: pytest.TempPathFactory) -> BytePairTokenizer:
    """A byte-level BPE trained by the library that trained GPT-2's kind of vocabulary."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    folder = tmp_path_factory.mktemp("trained_gpt2")
    pipeline = Tokenizer(BPE())
    pipeline.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=400, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    pipeline.train_from_iterator(CORPUS, trainer)
    pipeline.model.save(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text())
    vocabulary["<|endoftext|>"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    return BytePairTokenizer(folder, "gpt2")


@pytest.fixture(scope="session")
def chinese_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece model of single characters, most frequent first: ids known in advance.

    0 <unk>, 1 <s>, 2 </s>, 3 黄, 4 河, 5 入, 6 流, 7 ▁
    """
    import sentencepiece

    path = tmp_path_factory.mktemp("chinese") / "cog-pretrain.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CHINESE_CORPUS),
        model_prefix=str(path.with_suffix("")),
        vocab_size=8,
        model_type="char",
        character_coverage=1.0,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return path


@pytest.fixture(scope="session")
def chinese(chinese_file: Path) -> ChineseTokenizer:
    """The tokenizer of GLM-Large-Chinese over 8 pieces."""
    return ChineseTokenizer(chinese_file)


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> MiniTokenizer:
    """A tokenizer trained by this package."""
    path = tmp_path_factory.mktemp("mini") / "tokenizer.model"
    return train(iter(CORPUS), path, vocab_size=400)


@pytest.fixture(scope="session")
def hub_session() -> Iterator[None]:
    """The client that huggingface_hub keeps, closed behind the last test."""
    from huggingface_hub import close_session

    yield
    close_session()


@pytest.fixture
def hub_server(
    hub_session: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[HubServer]:
    """A hub of our own, an empty user folder, no login, and no waiting between tries."""
    monkeypatch.setenv("OPENGLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_TOKEN", "HF_ENDPOINT", "MODELSCOPE_ENDPOINT", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("openglm.hub.network.sleep", lambda _: None)
    with running() as server:
        yield server
