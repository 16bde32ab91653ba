"""Evaluates a trained mini on held-out text; writes recipes/mini/evaluation.json.

    python recipes/mini/evaluate.py RUN_FOLDER [MODEL_FOLDER]

Bits per byte: each held-out document is predicted left to right as one long blank behind `[CLS]`
(at most 200 tokens of it), and the code length is divided by the UTF-8 bytes of those tokens.
Blanks: one token in the middle of a held-out document is hidden behind [MASK]; a hit is the right
token as the most likely one. Poems: the first half of each famous poem is given; a hit is the next
line, character for character (these poems were trained on: it measures memory).
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

import openglm
from openglm.data.sources import SourceConfig, read_rows
from openglm.engine.score import verbalizer_logits
from openglm.nn.masks import MaskSpec
from openglm.settings import parse, read_toml
from openglm.train.config import RunConfig
from openglm.train.metrics import read_metrics

HERE = Path(__file__).parent
LANGUAGES = {
    "English": ("books", "tatoeba_en", "wiki_en", "dialogues_en"),
    "Chinese": ("poetry", "novels", "wiki_zh", "recipes", "technical", "dialogues_zh"),
}
DOCUMENTS_PER_SOURCE = 60
LONGEST = 200


def held_out(source: SourceConfig, holdout: float) -> list[str]:
    """Some documents of a source that were kept from training."""
    found: list[str] = []
    for row in read_rows(source, HERE / "data", holdout):
        if row.held_out and row.documents:
            found.append(row.documents[0])
        if len(found) == DOCUMENTS_PER_SOURCE:
            break
    return found


@torch.no_grad()
def code_length(model: openglm.LanguageModel, text: str) -> tuple[float, int]:
    """(bits, bytes) of the first tokens of a text."""
    special = model.tokenizer.special
    tokens = model.tokenizer.encode(text)[:LONGEST]
    ids = torch.tensor([[special.cls_id, special.gmask_id, special.sop_id, *tokens[:-1]]])
    count = len(tokens)
    positions = torch.tensor([[0, 1, *[1] * count]])
    blocks = torch.tensor([[0, 0, *range(1, count + 1)]])
    hidden = model.network(ids, positions, blocks, MaskSpec.prefix(torch.tensor([2])))
    logits = model.network.logits(hidden[0, 2:])
    nats = cross_entropy(logits, torch.tensor(tokens), reduction="sum").item()
    return nats / math.log(2), len(model.tokenizer.decode_bytes(tokens))


def blank_hit(model: openglm.LanguageModel, text: str, rng: np.random.Generator) -> bool:
    """Whether one hidden token is the most likely one."""
    special = model.tokenizer.special
    tokens = model.tokenizer.encode(text)[:LONGEST]
    place = int(rng.integers(0, len(tokens)))
    context = [special.cls_id, *tokens[:place], special.mask_id, *tokens[place + 1 :]]
    context.append(special.eos_id)
    every = list(range(model.config.vocab_size))
    logits = verbalizer_logits(model.network, context, place + 1, every, special.sop_id)
    return int(logits.argmax()) == tokens[place]


def poem_hit(model: openglm.LanguageModel, poem: str) -> bool | None:
    """Whether the line behind the first half comes out; None for texts that are too short."""
    lines = poem.splitlines()
    if len(lines) < 4:
        return None
    half = len(lines) // 2 + 1
    given = "\n".join(lines[:half]) + "\n"
    if len(model.tokenizer.encode(given)) > LONGEST:
        return None
    made = model.generate(given, temperature=0.0, max_tokens=40).text
    return made.split("\n")[0] == lines[half]


def main(run: Path, folder: Path) -> None:
    """Evaluates and writes the figures."""
    config = parse(RunConfig, read_toml(HERE / "pretrain.toml"))
    model = openglm.load(folder)
    sources = {source.name: source for source in config.data.sources}
    tatoeba = sources["tatoeba"]
    sources["tatoeba_en"] = SourceConfig(name="tatoeba_en", path=tatoeba.path, templates=["{en}"])
    rng = np.random.default_rng(0)
    figures: dict[str, dict[str, object]] = {}
    for language, names in LANGUAGES.items():
        by_source, bits, size, hits, total = {}, 0.0, 0, 0, 0
        for name in names:
            texts = held_out(sources[name], config.data.holdout)
            lengths = [code_length(model, text) for text in texts]
            hits += sum(blank_hit(model, text, rng) for text in texts)
            total += len(texts)
            bits += sum(b for b, _ in lengths)
            size += sum(n for _, n in lengths)
            by_source[name] = round(sum(b for b, _ in lengths) / sum(n for _, n in lengths), 3)
        figures[language] = {
            "bits_per_byte": round(bits / size, 3),
            "bits_per_byte_by_source": by_source,
            "one_token_blanks_right": round(hits / total, 3),
            "documents": total,
        }
    poems = [
        poem_hit(model, json.loads(line)["text"])
        for line in (HERE / "data" / "famous_poems.jsonl").read_text().splitlines()
    ]
    judged = [hit for hit in poems if hit is not None]
    rows = read_metrics(run / "metrics.jsonl")
    last = [row for row in rows if row["kind"] == "validation"][-1]
    result = {
        "steps": rows[-1]["step"],
        "tokens_seen": rows[-1]["tokens_seen"],
        "held_out_loss_nats_per_target_token": round(last["loss"], 4),
        "languages": figures,
        "famous_poems_next_line_right": round(sum(judged) / len(judged), 3),
        "famous_poems": len(judged),
    }
    text = json.dumps(result, indent=2, ensure_ascii=False)
    (HERE / "evaluation.json").write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    run_folder = Path(sys.argv[1])
    main(run_folder, Path(sys.argv[2]) if len(sys.argv) == 3 else run_folder / "model")
