"""From a run configuration to its training and validation batches; tokenised text is cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from openglm.data.batches import BatchStream
from openglm.data.objectives import BlankInfilling
from openglm.data.packing import Packer
from openglm.data.sentences import sentence_end_table
from openglm.data.sources import Row, SourceConfig, read_rows
from openglm.data.token_store import TokenStore, write_store
from openglm.errors import DataError
from openglm.tokenizers import Tokenizer
from openglm.train.config import RunConfig

SPLITS = ("train", "validation")
TRAIN_STREAM, VALIDATION_STREAM = 0, 1


@dataclass(frozen=True, slots=True)
class Corpus:
    """The tokenised sources of a run, one store per source and split.

    `fingerprints` name the content of each source, tokenizer and split, wherever the files are.
    """

    fingerprints: list[str]
    train: list[TokenStore]
    validation: list[TokenStore]


def prepare_corpus(
    config: RunConfig,
    tokenizer: Tokenizer,
    cache: Path,
    report: Callable[[str], None] = lambda _: None,
) -> Corpus:
    """Tokenises every source, or finds it in `cache` from an earlier run.

    Args:
        config: the run.
        tokenizer: of the run.
        cache: folder for token stores.
        report: called with the name of each source before it is tokenised.
    """
    vocabulary = hashlib.sha256()
    for path in tokenizer.files().values():
        vocabulary.update(path.read_bytes())
    stores: dict[str, list[TokenStore]] = {split: [] for split in SPLITS}
    fingerprints = []
    for source in config.data.sources:
        fingerprints.append(_store_name(source, config, vocabulary.hexdigest()))
        folder = cache / fingerprints[-1]
        if not all((folder / split).is_dir() for split in SPLITS):
            report(source.name)
            _tokenise(source, config, tokenizer, folder)
        for split in SPLITS:
            stores[split].append(TokenStore(folder / split))
        if not len(stores["train"][-1]):
            raise DataError(f"source {source.name!r} has no text to train on")
    return Corpus(
        fingerprints=fingerprints,
        train=stores["train"],
        validation=stores["validation"],
    )


def _store_name(source: SourceConfig, config: RunConfig, vocabulary: str) -> str:
    path = Path(config.data.folder) / source.path
    if not path.is_file():
        raise DataError(
            f"source {source.name!r}: there is no file {path}", hint="check data.folder and path"
        )
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    key = json.dumps([content, source.templates, config.data.holdout, vocabulary])
    return f"{source.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _tokenise(source: SourceConfig, config: RunConfig, tokenizer: Tokenizer, folder: Path) -> None:
    rows: dict[bool, list[Row]] = {True: [], False: []}
    for row in read_rows(source, Path(config.data.folder), config.data.holdout):
        rows[row.held_out].append(row)
    for split, held_out in (("validation", True), ("train", False)):
        documents = chain.from_iterable(row.documents for row in rows[held_out])
        ids = (tokenizer.encode(text) for text in documents)
        if not (folder / split).is_dir():
            write_store(folder / split, ids, tokenizer.vocab_size)


def build_stream(
    config: RunConfig, tokenizer: Tokenizer, stores: list[TokenStore], stream: int
) -> BatchStream:
    """The batches made from `stores`, weighted as the sources are."""
    ends = sentence_end_table(tokenizer.pieces())
    filled = [
        (store, source.weight)
        for store, source in zip(stores, config.data.sources, strict=True)
        if len(store)
    ]
    if not filled:
        raise DataError("no source has held-out text", hint="raise data.holdout")
    packer = Packer.build(
        [store for store, _ in filled],
        [weight for _, weight in filled],
        config.train.sequence_length,
        tokenizer.special.cls_id,
        tokenizer.special.eos_id,
        ends,
        config.data.mid_sentence_start,
    )
    objective = BlankInfilling(
        config.objective, tokenizer.special, ends, config.model.max_position_embeddings
    )
    return BatchStream(packer, objective, config.train.batch_size, config.train.seed, stream)
