"""Claim: how fast `mini` decodes, against the memory bandwidth measured in the same run."""

from time import perf_counter
from typing import Any

import openglm
from benchmarks.record import spread
from openglm.benchmark import memory_bandwidth

TOKENS, REPEATS = 200, 9


def measure() -> dict[str, Any]:
    """Tokens/s of greedy decoding for one sequence, and the weight bytes it streams."""
    found: dict[str, Any] = {}
    for dtype, width in (("float32", 4), ("bfloat16", 2)):
        model = openglm.load("mini", dtype=dtype)
        config = model.config
        tables = 2 * config.position_rows * config.hidden_size
        streamed = (config.num_parameters - tables) * width  # tables are looked up, not streamed
        rates, bandwidths = [], []
        for _ in range(REPEATS):
            bandwidths.append(memory_bandwidth(repeats=2))
            start = perf_counter()
            made = model.fill("[gMASK]", max_tokens=TOKENS, min_tokens=TOKENS)
            rates.append(len(made.blanks[0].token_ids) / (perf_counter() - start))
        middle = spread(rates)["median"]
        found[dtype] = {
            "tokens_per_s": spread(rates),
            "weight_bytes_per_token": streamed,
            "gb_per_s": streamed * middle / 1e9,
            "memory_bandwidth_gb_per_s": spread([b / 1e9 for b in bandwidths]),
            "share_of_bandwidth": streamed * middle / spread(bandwidths)["median"],
        }
    note = "mini fits the last-level cache; per-token time is torch's call overhead, not bandwidth"
    return {"unit": "one sequence, greedy", "note": note, "results": found}
