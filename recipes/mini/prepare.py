"""Prepares the text of `mini`: links the corpora, picks the famous poems, trains the tokenizer.

    python recipes/mini/prepare.py DATA_FOLDER

DATA_FOLDER holds the files named in pretrain.toml. The results go to recipes/mini/data/.
"""

from __future__ import annotations

import json
import lzma
import random
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from openglm.data.sources import SourceConfig, read_rows
from openglm.tokenizers.mini import train

HERE = Path(__file__).parent
OUT = HERE / "data"
TOKENIZER_CHARACTERS = 45_000_000
"""Text that the tokenizer is trained on; more changes it little and takes longer."""


def pick_famous_poems(poetry: Path, first_words: Path, out: Path) -> int:
    """Writes the poems that contain a line of `first_words`; returns how many."""
    openings = [line for line in first_words.read_text().splitlines() if line]
    count = 0
    with lzma.open(poetry, "rt") as rows, out.open("w") as file:
        for row in rows:
            text = json.loads(row)["text"]
            if any(f"\n{opening}" in text for opening in openings):
                start = min(text.find(f"\n{o}") for o in openings if f"\n{o}" in text) + 1
                fields = {"text": text, "lines": text[start:]}
                file.write(json.dumps(fields, ensure_ascii=False) + "\n")
                count += 1
    return count


def sample_documents(sources: list[SourceConfig]) -> Iterator[str]:
    """Yields documents of all sources in proportion to size x weight, in random order."""
    texts = {s.name: [d for row in read_rows(s, OUT, 0.0) for d in row.documents] for s in sources}
    sizes = {s.name: s.weight * sum(map(len, texts[s.name])) for s in sources}
    total = sum(sizes.values())
    chosen: list[str] = []
    rng = random.Random(0)
    for source in sources:
        budget = TOKENIZER_CHARACTERS * sizes[source.name] / total
        documents = texts[source.name]
        rng.shuffle(documents)
        for document in documents:  # at most once: repeats would teach the tokenizer nothing
            if budget <= 0:
                break
            chosen.append(document)
            budget -= len(document)
    rng.shuffle(chosen)
    return iter(chosen)


def main(folder: Path) -> None:
    """Runs all three steps."""
    config = tomllib.loads((HERE / "pretrain.toml").read_text())
    sources = [SourceConfig(**source) for source in config["data"]["sources"]]
    OUT.mkdir(exist_ok=True)
    for source in sources:
        if (folder / source.path).exists() and not (OUT / source.path).exists():
            (OUT / source.path).symlink_to((folder / source.path).resolve())
    count = pick_famous_poems(
        OUT / "zh_poetry.jsonl.xz", HERE / "famous.txt", OUT / "famous_poems.jsonl"
    )
    sys.stdout.write(f"{count} famous poems\n")
    tokenizer = train(
        sample_documents(sources),
        OUT / "tokenizer.model",
        vocab_size=config["model"]["vocab_size"],
        character_coverage=0.9985,
        num_threads=2,
    )
    sys.stdout.write(f"tokenizer: {tokenizer.vocab_size} ids in {tokenizer.path}\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
