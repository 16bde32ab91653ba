"""Claims, for ChatGLM2-6B with random weights on one GPU: near the limits of the same machine.

In bf16 it decodes at 80 % of the memory bandwidth or more, in INT4 at 2.2 times bf16 or more, and
reads 32 prompts at 50 % of the matrix-product peak or more; bandwidth and peak are measured in the
same run. Times of single products say where the kernels stand, and from how many rows of x on the
one for many rows is the faster.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import openglm
from benchmarks.record import seconds, spread
from openglm.benchmark import streamed_bytes
from openglm.engine.decoder import Decoder
from openglm.engine.graphs import RECORD_AFTER
from openglm.kernels.packed_linear import linear
from openglm.kernels.packing import PackedWeight, Packing
from openglm.memory import linear_shapes
from openglm.model import Transformer
from openglm.registry import preset

MODEL = "chatglm2-6b"
DTYPES = ("bfloat16", "int8", "int4")
CONTEXTS, STEPS = (32, 2048), 64
PREFILL_BATCH, PREFILL_TOKENS = 32, 512
REPEATS = 7
COLD_BYTES = 1 << 28
"""Weights that are taken in turn, so that none is still in a cache (50 MB on an H100)."""
NUM_ROWS = (1, 2, 4, 8, 16, 64, 512, 4096)
FORMS = (Packing(bits=4), Packing(bits=4, group_size=128, symmetric=False), Packing(bits=8))


def measure() -> dict[str, Any]:
    """Limits of the GPU, decode and prefill of each dtype, and single products."""
    if not torch.cuda.is_available():
        raise SystemExit("gpu_decode needs a GPU")
    import triton

    bandwidth, peak = memory_bandwidth(), matmul_peak()
    models = {dtype: _model(dtype, bandwidth, peak) for dtype in DTYPES}
    steps = {dtype: found["decode"]["32"]["step_s"]["median"] for dtype, found in models.items()}
    return {
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "model": f"{MODEL}, random weights; prompts of random tokens, greedy",
        "memory_bandwidth_gb_per_s": bandwidth / 1e9,
        "bf16_matmul_peak_tflop_per_s": peak / 1e12,
        "int4_to_bfloat16": steps["bfloat16"] / steps["int4"],
        "results": models,
        "products": _products(bandwidth),
    }


def memory_bandwidth(num_bytes: int = 1 << 32, device: str = "cuda") -> float:
    """Bytes/s of summing up a large tensor: reading, which decoding mostly is."""
    numbers = torch.zeros(num_bytes // 4, device=device)
    return num_bytes / min(_times(numbers.sum))


def matmul_peak(size: int = 8192, device: str = "cuda") -> float:
    """FLOP/s of a large square product in bf16."""
    a, b = torch.randn(2, size, size, device=device).bfloat16()
    return 2 * size**3 / min(_times(lambda: a @ b))


def _model(dtype: str, bandwidth: float, peak: float) -> dict[str, Any]:
    network = openglm.load(MODEL, dtype=dtype, device="cuda", random_weights=True).network
    streamed = streamed_bytes(network)
    decode = {}
    for context in CONTEXTS:
        static, plain = (decode_times(network, context, is_static) for is_static in (True, False))
        decode[str(context)] = {
            "step_s": spread(static),
            "plain_step_s": spread(plain),
            "tokens_per_s": 1 / spread(static)["median"],
            "share_of_bandwidth": streamed / spread(static)["median"] / bandwidth,
        }
    read = prefill_times(network, PREFILL_BATCH, PREFILL_TOKENS)
    flops = prefill_flops(network, PREFILL_BATCH, PREFILL_TOKENS) / spread(read)["median"]
    prefill = {
        "batch_size": PREFILL_BATCH,
        "prompt_tokens": PREFILL_TOKENS,
        "seconds": spread(read),
        "tokens_per_s": PREFILL_BATCH * PREFILL_TOKENS / spread(read)["median"],
        "share_of_matmul_peak": flops / peak,
    }
    return {"streamed_bytes": streamed, "decode": decode, "prefill": prefill}


def decode_times(network: Transformer, context: int, is_static: bool) -> list[float]:
    """Seconds per greedy step behind a context, one mean of `STEPS` per repeat.

    Args:
        network: the model.
        context: tokens of it.
        is_static: replays recorded steps; False runs each from Python.
    """
    ids = torch.randint(network.config.vocab_size, (1, context))
    decoder = Decoder(network, ids, RECORD_AFTER + 2 + (REPEATS + 1) * STEPS, is_causal=True)
    if not is_static:
        decoder.steps = None
    token = torch.zeros(1, 1, dtype=torch.int64)

    def steps(number: int) -> None:
        nonlocal token
        for _ in range(number):
            places = torch.full_like(token, decoder.cache.length)
            logits = decoder.feed(token, places, torch.zeros_like(token))
            token = logits.argmax(dim=-1).cpu()

    steps(RECORD_AFTER + 2)
    return [time / STEPS for time in _times(lambda: steps(STEPS))]


def prefill_times(network: Transformer, batch_size: int, length: int) -> list[float]:
    """Seconds to read prompts, their cache included."""
    ids = torch.randint(network.config.vocab_size, (batch_size, length))
    return _times(lambda: Decoder(network, ids, 1, is_causal=True))


def prefill_flops(network: Transformer, batch_size: int, length: int) -> int:
    """Multiplications and additions of all blocks; of attention, those under the causal mask."""
    config = network.config
    weights = config.num_layers * sum(rows * columns for rows, columns in linear_shapes(config))
    scores = config.num_layers * config.hidden_size * length  # T / 2 keys each, twice: q k, p v
    return 2 * batch_size * length * (weights + scores)


def _products(bandwidth: float) -> list[dict[str, Any]]:
    """Times of single products with the weights of one block."""
    config = preset(MODEL).model
    return [
        _product(rows, columns, num_rows, bandwidth)
        for rows, columns in sorted(set(linear_shapes(config)))
        for num_rows in NUM_ROWS
    ]


def _product(rows: int, columns: int, num_rows: int, bandwidth: float) -> dict[str, Any]:
    from openglm.kernels.gpu.packed_linear import FEW_ROWS, packed_linear

    x = torch.randn(num_rows, columns, device="cuda").bfloat16()
    dense = _several(
        lambda: torch.randn(rows, columns, device="cuda").bfloat16(), 2 * rows * columns
    )
    times = {"bfloat16": _cold(lambda w: torch.nn.functional.linear(x, w), dense)}
    shares = {"bfloat16": dense[0].nbytes / times["bfloat16"] / bandwidth}
    for form in FORMS:
        packed = _several(partial(random_weight, rows, columns, form), rows * columns // 2)
        name = f"int{form.bits} group {form.group_size or 'row'}"
        times[name] = _cold(lambda w: linear(x, w, kernel="triton"), packed)
        shares[name] = packed[0].values.nbytes / times[name] / bandwidth
        if num_rows <= FEW_ROWS:
            for kernel, few in (("few_rows", FEW_ROWS), ("many_rows", 0)):
                work = _cold(lambda w, few=few: packed_linear(x, w, None, few), packed)
                times[f"{name}, {kernel}"] = work
    return {
        "weight": [rows, columns],
        "rows_of_x": num_rows,
        "seconds": times,
        "share_of_bandwidth": shares,
    }


def random_weight(rows: int, columns: int, packing: Packing, device: str = "cuda") -> PackedWeight:
    """Noise in the packed layout."""
    shapes = packing.shapes(rows, columns)
    values = torch.randint(256, shapes["weight"], dtype=torch.uint8, device=device)
    dtype = torch.float16 if packing.group_size else torch.float32
    scale = torch.full(shapes["weight_scale"], 0.01, dtype=dtype, device=device)
    minimum = None if packing.symmetric else -scale
    return PackedWeight(packing, rows, columns, values, scale, minimum)


def _several(make: Callable[[], Any], num_bytes: int) -> list[Any]:
    return [make() for _ in range(max(2, COLD_BYTES // num_bytes))]


def _cold(work: Callable[[Any], object], weights: list[Any]) -> float:
    """Median seconds of one product, as a CUDA graph over all weights: no time to start kernels."""
    for weight in weights:
        work(weight)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for weight in weights:
            work(weight)
    return spread(_times(graph.replay))["median"] / len(weights)


def _times(work: Callable[[], object]) -> list[float]:
    """Seconds of each of `REPEATS` calls, until the GPU has finished."""

    def finished() -> None:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return seconds(finished, REPEATS)
