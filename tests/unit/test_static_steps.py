"""Static steps: the same logits as plain ones, and nothing in them that a CUDA graph cannot replay.

Without a GPU, `Tape` stands for a CUDA graph: it repeats the operations of one step on the tensors
of that step, without running any Python of the network again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from helpers_models import random_model, tiny_config
from openglm.engine import graphs
from openglm.engine.decoder import Decoder
from openglm.engine.graphs import StaticStep, Steps
from openglm.model import Transformer
from openglm.nn.cache import Prefix

ROTARY = {"hidden_size": 96, "norm": "rmsnorm", "intermediate_size": 96, "context": "until_sop"}
MODELS: dict[str, dict[str, Any]] = {
    "GLM": {},
    "grouped keys": ROTARY
    | {"position": "rotary", "rotary_pairing": "interleaved", "num_key_value_heads": 3},
    "two planes": ROTARY
    | {"position": "rotary_2d", "rotary_compute": "float16", "rotary_frequencies": "float16"},
    "top query": {"position": "learned", "top_query": True, "activation": "gelu_sigmoid"},
}
TOLERANCE = 3e-5
"""Blocked places add exact zeros; only the order of float32 sums differs, of logits up to 20:
fifteen times the spacing of such numbers."""


def _prepared(changes: dict[str, Any], prefix: int = 0) -> tuple[Decoder, Decoder]:
    """Two decoders of the same batch of three contexts."""
    model = random_model(tiny_config(**changes))
    if prefix:
        config = model.config
        shape = (2, config.num_layers, prefix, config.kv_heads, config.head_dim)
        model.prefix = Prefix(*torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    context = torch.arange(15).view(3, 5)
    return Decoder(model, context, 20), Decoder(model, context, 20)


def _step(index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, positions and block positions of step `index`, others in every row."""
    tokens = torch.tensor([[7], [11], [13]]) * (index + 1) % 60
    return tokens, torch.tensor([[5], [2], [4]]) + index, torch.tensor([[1], [1], [2]]) + index


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("name", MODELS)
def test_static_steps_are_plain_steps(
    name: str, prefix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text on a GPU would differ from text on a CPU after a few tokens."""
    monkeypatch.setattr(graphs, "WINDOW", 8)
    if name == "top query" and prefix:
        pytest.skip("a trained prefix has no keys for the block on top")
    plain, static = _prepared(MODELS[name], prefix)
    static.steps = Steps(static.model, records=False)
    windows = set()
    for index in range(20):
        expected, found = plain.feed(*_step(index)), static.feed(*_step(index))
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
        if static.steps.step is not None:
            windows.add(static.steps.step.context.window)
    assert windows == {16, 24, 25 + prefix}  # the last is the whole cache
    assert static.cache.length == plain.cache.length == 25


@pytest.mark.parametrize("name", MODELS)
def test_a_recorded_step_can_be_replayed(name: str) -> None:
    """A number that Python computes, or a new tensor's address, would be frozen in a CUDA graph."""
    plain, static = _prepared(MODELS[name])
    step = StaticStep(static.model, static.cache, records=False)
    step._run()  # as before recording: copies made once are made here
    with Tape() as tape:
        output = step._run()
    assert not tape.reads
    step._run = tape.replay(output)  # type: ignore[method-assign]
    for index in range(20):
        found = step.logits(*_step(index)).clone()
        expected = plain.feed(*_step(index))
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


def test_steps_are_recorded_late_and_again_for_other_tensors() -> None:
    """A short answer would wait for a recording; a beam's steps would read the cache before it."""
    _, decoder = _prepared({})
    decoder.steps = steps = Steps(decoder.model, records=False)
    for index in range(graphs.RECORD_AFTER):
        decoder.feed(*_step(index))
        assert steps.step is None
    decoder.feed(*_step(8))
    first = steps.step
    assert first is not None
    decoder.cache.reorder(torch.tensor([2, 0, 1]))  # in place
    decoder.feed(*_step(9))
    assert steps.step is first
    decoder.cache = decoder.cache.copy()
    decoder.feed(*_step(10))
    assert steps.step is None


def test_a_full_cache_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token would be written outside the cache."""
    from openglm.errors import RequestError

    monkeypatch.setattr(graphs, "RECORD_AFTER", 0)
    _, decoder = _prepared({})
    decoder.steps = Steps(decoder.model, records=False)
    for index in range(20):
        decoder.feed(*_step(index))
    with pytest.raises(RequestError, match="25 of at most 25"):
        decoder.feed(*_step(20))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", MODELS)
def test_replayed_cuda_graphs_are_plain_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recording itself: streams, warm-up runs and addresses."""
    monkeypatch.setattr(graphs, "WINDOW", 8)
    model: Transformer = random_model(tiny_config(**MODELS[name])).to("cuda")
    context = torch.arange(15).view(3, 5)
    plain, static = Decoder(model, context, 20), Decoder(model, context, 20)
    plain.steps = None
    for index in range(20):
        expected, found = plain.feed(*_step(index)), static.feed(*_step(index))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)  # other kernels may be taken
    assert static.steps is not None
    assert static.steps.step is not None
    assert static.steps.step.graph is not None


class Tape(TorchDispatchMode):
    """Records every operation with the very tensors that went in and came out."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.entries.append((func, args, kwargs or {}, out))
        return out

    @property
    def reads(self) -> list[str]:
        """Operations in which the host waits for a number."""
        return [str(func) for func, *_ in self.entries if "_local_scalar_dense" in str(func)]

    def replay(self, output: Tensor) -> Callable[[], Tensor]:
        """Repeats all of it; each result goes to where it was when it was recorded."""

        def again() -> Tensor:
            for func, args, kwargs, out in self.entries:
                pairs = zip(_tensors(out), _tensors(func(*args, **kwargs)), strict=True)
                for recorded, new in pairs:
                    if recorded.data_ptr() != new.data_ptr():
                        recorded.copy_(new)
            return output

        return again


def _tensors(result: Any) -> list[Tensor]:
    several = result if isinstance(result, tuple | list) else [result]
    return [each for each in several if isinstance(each, Tensor)]
