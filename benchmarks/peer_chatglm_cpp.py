"""chatglm.cpp on a ChatGLM2-6B of random weights; run by an interpreter that has chatglm-cpp.

python benchmarks/peer_chatglm_cpp.py FILE VOCABULARY KIND PROMPT_TOKENS NEW_TOKENS REPEATS

FILE is written if it is not there, in KIND, q4_0 or q8_0; VOCABULARY is ChatGLM2's tokenizer.model,
which belongs into it. Prompts are random tokens. Prints JSON, like `peer_llama_cpp`.
"""

import json
import random
import resource
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import BinaryIO

import numpy as np
from chatglm_cpp import _C

VOCAB, WIDTH, LAYERS, HEADS, KV_HEADS, MLP, LENGTH = 65024, 4096, 28, 32, 2, 13696, 32768
"""ChatGLM2-6B's config.json."""
CHATGLM2, VERSION, F32 = 2, 2, 0
KINDS = {"q4_0": (2, 16), "q8_0": (8, 32)}
"""Number of the type in ggml, and bytes of 32 weights behind their float16 scale."""
SCALE = {"q4_0": 2e-3, "q8_0": 2e-4}
ALIGNMENT = 16


def write(path: Path, vocabulary: Path, kind: str) -> None:
    """Writes a file as chatglm_cpp.convert lays it out (version 0.4.2)."""
    number, size = KINDS[kind]
    draw = np.random.default_rng(0)
    with path.open("wb") as file:
        shape = (number, VOCAB, WIDTH, HEADS, KV_HEADS, LAYERS, MLP)
        file.write(b"ggml" + struct.pack("i", CHATGLM2))
        file.write(struct.pack("iiiiiiiififiii", VERSION, *shape, 1e-5, 0, 1e4, LENGTH, 2, 0))
        words = vocabulary.read_bytes()
        file.write(struct.pack("i", len(words)) + words)
        for name, dims in _tensors():
            is_packed = len(dims) == 2
            spelt = name.encode()
            head = (len(dims), *dims, number if is_packed else F32)
            file.write(struct.pack("i", len(spelt)) + spelt)
            file.write(struct.pack(f"{len(head)}i", *head))
            _align(file)
            if not is_packed:
                file.write(np.ones(dims, np.float32).tobytes())
                continue
            blocks = np.empty(dims[0] * dims[1] // 32, [("scale", "<f2"), ("weights", "u1", size)])
            blocks["scale"] = SCALE[kind]
            blocks["weights"] = draw.integers(0, 256, (len(blocks), size), np.uint8)
            file.write(blocks.tobytes())


def _tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes, in the order of the file."""
    both = WIDTH + 2 * KV_HEADS * (WIDTH // HEADS)
    yield "transformer.embedding.word_embeddings.weight", (VOCAB, WIDTH)
    for layer in range(LAYERS):
        place = f"transformer.encoder.layers.{layer}"
        yield f"{place}.input_layernorm.weight", (WIDTH,)
        yield f"{place}.self_attention.query_key_value.weight", (both, WIDTH)
        yield f"{place}.self_attention.query_key_value.bias", (both,)
        yield f"{place}.self_attention.dense.weight", (WIDTH, WIDTH)
        yield f"{place}.post_attention_layernorm.weight", (WIDTH,)
        yield f"{place}.mlp.dense_h_to_4h.weight", (2 * MLP, WIDTH)
        yield f"{place}.mlp.dense_4h_to_h.weight", (WIDTH, MLP)
    yield "transformer.encoder.final_layernorm.weight", (WIDTH,)
    yield "transformer.output_layer.weight", (VOCAB, WIDTH)


def _align(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))


def main(path: Path, vocabulary: Path, kind: str, prompt: int, new: int, repeats: int) -> None:
    """Loads the file, reads, and decodes."""
    if not path.exists():
        write(path, vocabulary, kind)
    start = perf_counter()
    pipeline = _C.Pipeline(str(path), max_length=prompt + new + 8)
    loaded = perf_counter() - start
    settings = _C.GenerationConfig(do_sample=False)
    draw = random.Random(0)
    reads, steps = [], []
    for _ in range(repeats):
        ids = [draw.randrange(5, 60_000) for _ in range(prompt)]
        past = 0
        for step in range(new + 1):
            start = perf_counter()
            token = pipeline.model.generate_next_token(ids, None, settings, past, prompt)
            (reads if step == 0 else steps).append(perf_counter() - start)
            past = len(ids)
            ids.append(token)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {"load_s": loaded, "read_s": median(reads), "step_s": median(steps), "peak_bytes": peak}
    sys.stdout.write(json.dumps(found))


main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:]))
