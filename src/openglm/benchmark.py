"""Measuring a model: prefill, decode and batched decode in tokens/s, and memory.

`glm bench` prints it. Times are medians of whole passes; the tokens are random, which costs the
same as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from openglm.engine.conventions import Style
from openglm.engine.engine import MAX_BATCH_TOKENS, Engine, memory_of_one
from openglm.engine.params import SamplingParams
from openglm.engine.prompt import Prompt
from openglm.engine.reader import PagedReader, reader_for
from openglm.engine.writer import Asked, most_tokens
from openglm.errors import RequestError
from openglm.kernels.cpu import module
from openglm.model import Transformer
from openglm.process import peak_bytes, reset_peak, resident_bytes

SEED = 0
BANDWIDTH_BYTES = 1 << 29
"""Larger than any cache."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured.

    Args:
        prompt_tokens: length T of the prompts.
        new_tokens: decoded behind each.
        prefill_s: seconds to read a prompt, median.
        decode_s: seconds per step for each number of sequences decoded together, median.
        streamed_bytes: weights that one step reads.
        peak_bytes: of memory while measuring: of the process, or of the GPU.
        used_bytes: before it.
        memory_bandwidth: bytes/s that this machine reads, before and after it; None on a GPU.
    """

    prompt_tokens: int
    new_tokens: int
    prefill_s: float
    decode_s: dict[int, float]
    streamed_bytes: int
    peak_bytes: int
    used_bytes: int
    memory_bandwidth: float | None

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens read per second; the first token comes after `prefill_s` (TTFT)."""
        return self.prompt_tokens / self.prefill_s

    def tokens_per_s(self, batch_size: int) -> float:
        """New tokens per second of all sequences together."""
        return batch_size / self.decode_s[batch_size]

    @property
    def bytes_per_s(self) -> float:
        """Weights streamed per second by one sequence."""
        return self.streamed_bytes / self.decode_s[min(self.decode_s)]


def measure(
    network: Transformer,
    prompt_tokens: int,
    new_tokens: int,
    batch_sizes: Sequence[int] = (1,),
    repeats: int = 3,
) -> Speed:
    """Reads random prompts and decodes behind them.

    Args:
        network: the model.
        prompt_tokens: length of the prompts.
        new_tokens: steps of each decode.
        batch_sizes: how many sequences are decoded together; 1 is always among them.
        repeats: passes, of which the median counts.

    Raises:
        RequestError: more tokens than the model has positions.
    """
    limit = network.config.max_position_embeddings
    if prompt_tokens + new_tokens > limit:
        raise RequestError(
            f"{prompt_tokens} prompt tokens and {new_tokens} new ones are more than the {limit} "
            "positions of this model"
        )
    device = network.device
    bandwidths = [memory_bandwidth()] if device.type == "cpu" else []
    used = _used_bytes(device)
    _reset_peak(device)
    prefills: list[float] = []
    decodes: dict[int, list[float]] = {size: [] for size in sorted({1, *batch_sizes})}
    for _ in range(repeats):
        for batch_size, steps in decodes.items():
            read_s, step_s = _run(network, batch_size, prompt_tokens, new_tokens)
            prefills += [read_s] if batch_size == 1 else []
            steps.append(step_s)
    peak = _peak_bytes(device)
    bandwidths += [memory_bandwidth() for _ in bandwidths]
    return Speed(
        prompt_tokens,
        new_tokens,
        median(prefills),
        {batch_size: median(steps) for batch_size, steps in decodes.items()},
        streamed_bytes(network),
        peak,
        used,
        max(bandwidths, default=None),
    )


def memory_bandwidth(repeats: int = 5) -> float:
    """Bytes/s that this machine reads from memory: the best of some passes over a buffer.

    The compiled kernels' threads read where they are; otherwise torch sums.
    """
    buffer = torch.ones(BANDWIDTH_BYTES // 4)
    native = module()
    best = float("inf")
    for _ in range(repeats):
        start = perf_counter()
        if native is None:
            buffer.sum()
        else:
            native.stream(buffer.data_ptr(), buffer.nbytes)
        best = min(best, perf_counter() - start)
    return BANDWIDTH_BYTES / best


def streamed_bytes(network: Transformer) -> int:
    """Weights that every step reads: all but tables in which only some rows are looked up."""
    looked_up = ("positions.", *["word_embeddings."] * hasattr(network, "lm_head"))
    return sum(
        parameter.nbytes
        for name, parameter in network.named_parameters()
        if not name.startswith(looked_up)
    )


def _run(
    network: Transformer, batch_size: int, prompt_tokens: int, new_tokens: int
) -> tuple[float, float]:
    """Seconds to read, and per step, as `generate` and the engine do it."""
    kind = reader_for(network)
    if kind is PagedReader and batch_size > 1:
        return _run_engine(network, batch_size, prompt_tokens, new_tokens)
    device, is_causal = network.device, network.config.is_causal
    length = prompt_tokens - is_causal  # a causal model's first token is chosen behind the last
    ids = _random_ids(network, batch_size, length)
    tokens = _random_ids(network, batch_size, 1)
    start = read = _now(device)
    reader = kind(network, ids, new_tokens + 1, is_causal)
    for step in range(1 + new_tokens):
        positions = torch.full_like(tokens, length + step if is_causal else length - 1)
        logits = reader.feed(tokens, positions, torch.full_like(tokens, step + 1))
        tokens = logits[:, -1:].argmax(dim=-1).cpu()
        read = read if step else _now(device)
    return read - start, (_now(device) - read) / new_tokens


def _run_engine(
    network: Transformer, batch_size: int, prompt_tokens: int, new_tokens: int
) -> tuple[float, float]:
    """Seconds until all have read, and per step in which all decode, the sampler included."""
    config = network.config
    is_glm = config.position == "learned_2d"
    style: Style = "causal" if config.is_causal else "grow" if is_glm else "refeed"
    lead = batch_size * (prompt_tokens // MAX_BATCH_TOKENS + 1)  # steps in which some still read
    room = config.max_position_embeddings - (0 if is_glm else prompt_tokens)
    if new_tokens + lead > room:
        raise RequestError(
            f"{batch_size} x {prompt_tokens} prompt tokens take {lead} steps to read, in which the "
            f"first write already: with {new_tokens} more that is beyond this model's positions",
            hint="shorten the prompts, or take fewer new tokens",
        )
    params = SamplingParams(max_tokens=new_tokens + lead)
    length = max(prompt_tokens - 1, 1)
    asked = [
        Asked(Prompt(ids, [length - 1], ["", ""], 0, frozenset(), style), params)
        for ids in _random_ids(network, batch_size, length).tolist()
    ]
    longest = most_tokens(asked[0].prompt, params)
    engine = Engine(network, memory_bytes=batch_size * memory_of_one(network, longest))
    requests = [engine.add(*one) for one in asked]
    start = perf_counter()
    while not all(request.steps for request in requests):
        engine.step()
    read, num_steps = perf_counter(), engine.statistics.num_steps
    while engine.statistics.num_steps < num_steps + new_tokens and engine.has_work:
        engine.step()
    return read - start, (perf_counter() - read) / (engine.statistics.num_steps - num_steps)


def _random_ids(network: Transformer, batch_size: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(network.config.vocab_size, (batch_size, length), generator=generator)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        reset_peak()


def _used_bytes(device: torch.device) -> int:
    is_cuda = device.type == "cuda"
    return torch.cuda.memory_allocated(device) if is_cuda else resident_bytes()


def _peak_bytes(device: torch.device) -> int:
    is_cuda = device.type == "cuda"
    return torch.cuda.max_memory_allocated(device) if is_cuda else peak_bytes()
