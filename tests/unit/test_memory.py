"""The arithmetic of memory against published file sizes and built networks."""

from __future__ import annotations

import pytest
import torch

from openglm.engine.paged_cache import page_bytes
from openglm.kernels.paged_attention import PAGE_TOKENS
from openglm.memory import KV_DTYPES, cache_bytes, cache_width, streamed_bytes, weight_bytes
from openglm.model import build
from openglm.nn.cache import KVCache
from openglm.quant.transform import quantized
from openglm.registry import preset, presets
from openglm.scheme import Scheme, find_scheme


@pytest.mark.parametrize(
    ("name", "dtype", "file_bytes"),
    [
        ("chatglm2-6b", "float16", 12_487_168_064),  # total_size of the official index
        ("chatglm2-6b", "int4", 3_923_712_365),  # the one file of chatglm2-6b-int4
        ("chatglm-6b-first", "int4", 4_058_980_803),  # chatglm-6b-int4, with the old vocabulary
    ],
)
def test_published_files(name, dtype, file_bytes):
    """A user is told that a model fits which does not; a file has some names besides numbers."""
    assert weight_bytes(preset(name).model, dtype) == pytest.approx(file_bytes, rel=1e-3)


@pytest.mark.parametrize(("name", "per_token"), [("chatglm-6b", 458_752), ("chatglm2-6b", 28_672)])
def test_cache_per_token(name, per_token):
    """Sixteen times the cache is the difference between 1,000 and 16,000 tokens."""
    assert cache_bytes(preset(name).model, 1) == per_token


@pytest.mark.parametrize("name", presets())
@pytest.mark.parametrize(("dtype", "bits"), [("float32", 0), ("int8", 8), ("int4", 4)])
def test_every_preset_against_its_network(name, dtype, bits):
    """The arithmetic forgets a part of some network."""
    config = preset(name).model
    network = quantized(build(config), Scheme(bits=bits) if bits else None)
    kept = 2 if bits else 4
    sizes = (p.numel() * (kept if p.is_floating_point() else 1) for p in network.parameters())
    assert weight_bytes(config, dtype) == sum(sizes)
    cache = KVCache(config, 1, 10, device="meta")
    held = sum(t.nbytes for t in (*cache.keys, *cache.values))
    assert cache_bytes(config, 10, 4) == held


@pytest.mark.parametrize("name", ["glm-base", "chatglm2-6b", "codegeex-13b", "glm-4-9b-0414"])
@pytest.mark.parametrize(
    "dtype", ["int4-g128", "int8-g32-asym", "int4-g64-asym+embeddings+head", "int4-g32+head"]
)
def test_groups_against_their_network(name, dtype):
    """The arithmetic forgets scales, minima, or what fills blocks up."""
    config = preset(name).model
    network = quantized(build(config), find_scheme(dtype))
    sizes = (p.numel() * {torch.uint8: 1}.get(p.dtype, 2) for p in network.parameters())
    assert weight_bytes(config, dtype) == sum(sizes)
    looked_up = ("positions.", "top_queries.", *["word_embeddings."] * hasattr(network, "lm_head"))
    streamed = (
        p.numel() * {torch.uint8: 1}.get(p.dtype, 2)
        for n, p in network.named_parameters()
        if not n.startswith(looked_up)
    )
    assert streamed_bytes(config, dtype) == sum(streamed)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_cached_numbers_take_what_pages_do(kv_dtype):
    """A plan says that a context fits which the engine refuses, or the other way round."""
    config = preset("chatglm2-6b").model
    held = {name: getattr(torch, name) for name in KV_DTYPES if name != "auto"} | {
        "auto": torch.bfloat16
    }
    planned = cache_bytes(config, PAGE_TOKENS, cache_width(config, kv_dtype, 2))
    assert planned == page_bytes(config, held[kv_dtype])


def test_eight_thousand_tokens_in_six_gigabytes():
    """The claim of ChatGLM2's README: an INT4 dialogue of 8K tokens in 6 GB."""
    config = preset("chatglm2-6b").model
    assert weight_bytes(config, "int4") + cache_bytes(config, 8192) < 6e9
    first = preset("chatglm-6b").model
    assert weight_bytes(first, "int4") + cache_bytes(first, 8192) > 6e9
