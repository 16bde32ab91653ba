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

from openglm.engine.decoder import Decoder
from openglm.errors import RequestError
from openglm.model import Transformer
from openglm.process import peak_bytes, reset_peak, resident_bytes

SEED = 0


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
    """

    prompt_tokens: int
    new_tokens: int
    prefill_s: float
    decode_s: dict[int, float]
    streamed_bytes: int
    peak_bytes: int
    used_bytes: int

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
    used = _used_bytes(device)
    _reset_peak(device)
    prefills: list[float] = []
    decodes: dict[int, list[float]] = {size: [] for size in sorted({1, *batch_sizes})}
    for _ in range(repeats):
        for batch_size, steps in decodes.items():
            ids = _random_ids(network, batch_size, prompt_tokens)
            start = _now(device)
            decoder = Decoder(network, ids, new_tokens, is_causal=network.config.is_causal)
            read = _now(device)
            prefills += [read - start] if batch_size == 1 else []
            steps.append(_decode(decoder, batch_size, prompt_tokens, new_tokens))
    return Speed(
        prompt_tokens,
        new_tokens,
        median(prefills),
        {batch_size: median(steps) for batch_size, steps in decodes.items()},
        streamed_bytes(network),
        _peak_bytes(device),
        used,
    )


def streamed_bytes(network: Transformer) -> int:
    """Weights that every step reads: all but tables in which only some rows are looked up."""
    looked_up = ("positions.", *["word_embeddings."] * hasattr(network, "lm_head"))
    return sum(
        parameter.nbytes
        for name, parameter in network.named_parameters()
        if not name.startswith(looked_up)
    )


def _decode(decoder: Decoder, batch_size: int, prompt_tokens: int, new_tokens: int) -> float:
    """Seconds per step."""
    device = decoder.cache.keys[0].device
    tokens = _random_ids(decoder.model, batch_size, 1)
    start = _now(device)
    for step in range(new_tokens):
        place = prompt_tokens + step if decoder.model.config.is_causal else prompt_tokens - 1
        positions = torch.full_like(tokens, place)
        logits = decoder.feed(tokens, positions, torch.full_like(tokens, step + 1))
        tokens = logits[:, -1:].argmax(dim=-1).cpu()
    return (_now(device) - start) / new_tokens


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
