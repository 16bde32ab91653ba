"""Claim: token blanks are made at more than 1 M tokens/s on one core."""

from typing import Any

import numpy as np

from benchmarks.record import seconds, spread
from openglm.data.batches import collate
from openglm.data.objectives import BlankInfilling, ObjectiveConfig
from openglm.tokenizers.special import LAYOUTS

LENGTHS = (256, 512, 1024)
BATCH, BATCHES = 16, 40


def measure() -> dict[str, Any]:
    """Tokens of packed text per second: span sampling, example building and collation."""
    special = LAYOUTS["mini"].resolve(12_790)
    objective = BlankInfilling(
        ObjectiveConfig(token=1.0, sentence=0.0, document=0.0, short_sequence=0.0),
        special,
        np.zeros(12_800, dtype=bool),
        1024,
    )
    found = {}
    for length in LENGTHS:
        rng = np.random.default_rng(0)
        packs = [[_packed(length, special, rng) for _ in range(BATCH)] for _ in range(BATCHES)]

        def work(packs: list[Any] = packs) -> None:
            generator = np.random.default_rng(1)
            for sequences in packs:
                collate(objective.batch(sequences, generator))

        times = seconds(work, repeats=9)
        found[str(length)] = spread([BATCH * BATCHES * length / time for time in times])
    return {"unit": "tokens/s on one core, by sequence length", "tokens_per_s": found}


def _packed(length: int, special: Any, rng: np.random.Generator) -> Any:
    """A packed sequence of three documents."""
    tokens = rng.integers(0, 12_000, length)
    for start, end in ((0, length // 5), (length // 5, length // 2), (length // 2, length)):
        tokens[start], tokens[end - 1] = special.cls_id, special.eos_id
    return tokens
