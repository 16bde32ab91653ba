"""llama.cpp on one GGUF file, by its C interface; run by an interpreter that has llama-cpp-python.

python benchmarks/peer_llama_cpp.py FILE NUM_SEQUENCES PROMPT_TOKENS NEW_TOKENS REPEATS

Prompts are random tokens. Prints JSON: seconds to read, and per step of all sequences together.
"""

import json
import os
import random
import resource
import sys
from statistics import median
from time import perf_counter

import llama_cpp as llama

PIECE = 512


def main(file: str, num_sequences: int, prompt: int, new: int, repeats: int) -> None:
    """Loads the file, reads, and decodes."""
    llama.llama_backend_init()
    start = perf_counter()
    model = llama.llama_model_load_from_file(file.encode(), llama.llama_model_default_params())
    settings = llama.llama_context_default_params()
    settings.n_ctx = num_sequences * (prompt + new + 32)
    settings.n_batch = settings.n_ubatch = PIECE
    settings.n_threads = settings.n_threads_batch = os.cpu_count()
    settings.n_seq_max = num_sequences
    context = llama.llama_init_from_model(model, settings)
    loaded = perf_counter() - start
    draw = random.Random(0)

    def feed(places: list[tuple[int, int, bool]]) -> None:
        batch = llama.llama_batch_init(len(places), 0, num_sequences)
        batch.n_tokens = len(places)
        for row, (sequence, position, wanted) in enumerate(places):
            batch.token[row] = draw.randrange(5, 60_000)
            batch.pos[row], batch.n_seq_id[row] = position, 1
            batch.seq_id[row][0], batch.logits[row] = sequence, wanted
        if llama.llama_decode(context, batch):
            raise SystemExit("llama_decode failed")
        llama.llama_batch_free(batch)

    reads, steps = [], []
    for _ in range(repeats):
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        places = [(s, p, p == prompt - 1) for s in range(num_sequences) for p in range(prompt)]
        start = perf_counter()
        for first in range(0, len(places), PIECE):
            feed(places[first : first + PIECE])
        reads.append(perf_counter() - start)
        for step in range(new):
            start = perf_counter()
            feed([(s, prompt + step, True) for s in range(num_sequences)])
            steps.append(perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {"load_s": loaded, "read_s": median(reads), "step_s": median(steps), "peak_bytes": peak}
    sys.stdout.write(json.dumps(found))


main(sys.argv[1], *map(int, sys.argv[2:]))
