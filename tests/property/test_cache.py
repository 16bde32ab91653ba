"""Masks, cache and attention kernels on random networks: what must agree, agrees.

Tolerances: two float32 paths differ by summation order only (1e-5 on logits of size 1 to 10);
bfloat16 keeps 8 bits, and the reference rounds its scores to it: over all seeds used here the two
kernels differ by at most 0.016 on outputs of size 1, so 0.03 there.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from helpers_models import allowed_matrix, forward, random_model, tiny_config
from openglm.errors import RequestError
from openglm.kernels import attention as kernels
from openglm.language_model import LanguageModel
from openglm.nn.cache import KVCache
from openglm.nn.masks import MaskSpec

EXAMPLES = settings(max_examples=20)
KERNELS = pytest.mark.parametrize("kernel", [kernels.reference, kernels.fused])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.03}


@cache
def model() -> LanguageModel:
    return LanguageModel(random_model(tiny_config()), None, "random")


def random_ids(batch: int, length: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model().config.vocab_size, (batch, length), generator=generator)


def random_heads(
    seed: int, dtype: torch.dtype, num_queries: int = 5, num_keys: int = 9, spread: float = 1.0
):
    """Queries, keys, values (B, H, T or S, D); the scores have standard deviation spread**2."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (num_queries, num_keys, num_keys)
    heads = [torch.randn((2, 3, n, 8), generator=generator) for n in lengths]
    return [x.to(dtype) for x in (spread * heads[0], spread * heads[1], heads[2])]


@EXAMPLES
@given(data=st.data())
def test_cached_decoding_in_any_chunks_equals_one_full_pass(data):
    """Generated text depends on how the tokens were cut into calls: a cache or mask is wrong."""
    batch = data.draw(st.integers(1, 3), label="batch")
    chunks = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=6), label="chunks")
    contexts = st.lists(st.integers(0, chunks[0]), min_size=batch, max_size=batch)
    lengths = torch.tensor(data.draw(contexts, label="context lengths"))
    ids = random_ids(batch, sum(chunks), data.draw(st.integers(0, 99), label="seed"))
    blocks = ids % 7
    full = model().logits(ids, None, blocks, lengths)
    spare = data.draw(st.integers(0, 3), label="spare places in the cache")
    cache = model().new_cache(batch, sum(chunks) + spare)
    parts = [
        model().logits(ids_part, None, blocks_part, lengths, cache)
        for ids_part, blocks_part in zip(
            ids.split(chunks, dim=1), blocks.split(chunks, dim=1), strict=True
        )
    ]
    assert cache.length == sum(chunks)
    assert_close(torch.cat(parts, dim=1), full, atol=1e-5, rtol=0)


@EXAMPLES
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    num_queries=st.integers(1, 9),
    num_cached=st.integers(0, 5),
)
def test_masks_mean_what_their_definition_says(lengths, num_queries, num_cached):
    """A context token sees a blank, or a blank sees what comes after it."""
    num_keys = num_queries + num_cached
    lengths = [min(length, num_keys) for length in lengths]
    device = torch.device("cpu")
    expected = torch.stack([allowed_matrix(n, num_queries, num_keys) for n in lengths])
    prefix = MaskSpec.prefix(torch.tensor(lengths))
    assert torch.equal(prefix.dense(num_queries, num_keys, device), expected)
    causal = MaskSpec.causal().dense(num_queries, num_keys, device)
    assert torch.equal(causal[0], allowed_matrix(0, num_queries, num_keys))


@EXAMPLES
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    size=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_causal_prefix_and_explicit_masks_agree(lengths, size, seed):
    """The three ways to describe one mask lead to different logits."""
    network = model().network
    ids = random_ids(len(lengths), size, seed)
    lengths = [min(length, size) for length in lengths]
    explicit = torch.stack([allowed_matrix(n, size, size) for n in lengths])
    by_length = forward(network, ids, MaskSpec.prefix(torch.tensor(lengths)))
    assert_close(forward(network, ids, MaskSpec.explicit(explicit)), by_length, atol=1e-5, rtol=0)
    causal = forward(network, ids, MaskSpec.causal())
    no_context = MaskSpec.prefix(torch.zeros(len(lengths), dtype=torch.int64))
    assert_close(forward(network, ids, no_context), causal, atol=1e-5, rtol=0)


@EXAMPLES
@given(
    lengths=st.lists(st.integers(0, 8), min_size=2, max_size=4),
    size=st.integers(2, 8),
    seed=st.integers(0, 99),
)
def test_rows_of_a_batch_do_not_influence_each_other(lengths, size, seed):
    """The answer to one request depends on what else is in the batch."""
    network = model().network
    lengths = torch.tensor(lengths).clamp(max=size)
    ids = random_ids(len(lengths), size, seed)
    together = forward(network, ids, MaskSpec.prefix(lengths))
    others = ids.clone()
    others[1:] = (others[1:] + 1) % model().config.vocab_size
    other_lengths = torch.cat([lengths[:1], size - lengths[1:]])
    changed = forward(network, others, MaskSpec.prefix(other_lengths))
    assert_close(changed[0], together[0], atol=1e-5, rtol=0)
    assert not torch.allclose(changed[1], together[1], atol=1e-2)


@KERNELS
@DTYPES
@EXAMPLES
@given(seed=st.integers(0, 999), blocked_row=st.integers(0, 4))
def test_a_row_that_may_see_nothing_averages_all_values(kernel, dtype, seed, blocked_row):
    """Padding rows turn into NaN, which spreads, or differ from the official uniform attention."""
    queries, keys, values = random_heads(seed, dtype, spread=5.0)
    allowed = torch.rand((1, 5, 9), generator=torch.Generator().manual_seed(seed)) < 0.5
    allowed[0, :, 0] = True
    allowed[0, blocked_row] = False
    bias = MaskSpec.explicit(allowed).bias(5, 9, torch.device("cpu"))
    out = kernel(queries, keys, values, bias, 0.0).float()
    assert torch.isfinite(out).all()
    expected = values.float().mean(dim=2)
    assert_close(out[:, :, blocked_row], expected, atol=TOLERANCE[dtype], rtol=0)


@DTYPES
@EXAMPLES
@given(seed=st.integers(0, 999), num_queries=st.integers(1, 6), num_cached=st.integers(0, 6))
def test_fused_kernel_equals_the_reference(dtype, seed, num_queries, num_cached):
    """Long texts, which take the fused kernel, are computed differently than short ones."""
    num_keys = num_queries + num_cached
    heads = random_heads(seed, dtype, num_queries, num_keys)
    allowed = torch.stack([allowed_matrix(n, num_queries, num_keys) for n in (0, num_keys // 2)])
    bias = MaskSpec.explicit(allowed).bias(num_queries, num_keys, torch.device("cpu"))
    for mask in (bias, None):
        expected = kernels.reference(*heads, mask, 0.0)
        found = kernels.fused(*heads, mask, 0.0)
        assert found.dtype == expected.dtype == dtype
        assert_close(found, expected, atol=TOLERANCE[dtype], rtol=0)


@KERNELS
def test_kernels_compute_the_formula(kernel):
    """Attention is not softmax(q k^T / sqrt(D) + bias) v."""
    queries, keys, values = (x.double() for x in random_heads(7, torch.float32))
    bias = torch.randn((1, 1, 5, 9), generator=torch.Generator().manual_seed(8)).double()
    scores = torch.einsum("bhtd,bhsd->bhts", queries, keys) / 8**0.5 + bias
    expected = torch.einsum("bhts,bhsd->bhtd", scores.softmax(-1), values).float()
    inputs = [x.float() for x in (queries, keys, values, bias)]
    assert_close(kernel(*inputs, 0.0), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("limit", [0, 1 << 26])
def test_choice_of_kernel_keeps_the_axes(limit, monkeypatch):
    """Above or below the memory budget, heads and tokens are swapped."""
    monkeypatch.setattr(kernels, "MAX_SCORE_ELEMENTS", limit)
    heads = random_heads(3, torch.float32)
    expected = kernels.reference(*heads, None, 0.0).transpose(1, 2)
    found = kernels.attention(*(x.transpose(1, 2) for x in heads), None, 0.0)
    assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_network_uses_the_fused_kernel_for_large_scores(monkeypatch):
    """Long texts run out of memory, or come out differently, where the kernel changes."""
    ids = random_ids(2, 9, 5)
    mask = MaskSpec.prefix(torch.tensor([4, 9]))
    expected = forward(model().network, ids, mask)
    monkeypatch.setattr(kernels, "MAX_SCORE_ELEMENTS", 0)
    monkeypatch.setattr(kernels, "reference", None)
    assert_close(forward(model().network, ids, mask), expected, atol=1e-5, rtol=0)


def test_cache_copies_grow_on_their_own():
    """Beam search changes the cache that the next blank continues from."""
    ids, next_ids = random_ids(1, 4, 1), random_ids(1, 2, 2)
    cache = model().new_cache(1, 8)
    model().logits(ids, cache=cache)
    branch = cache.copy()
    model().logits(random_ids(1, 3, 3), cache=branch)
    assert (cache.length, branch.length) == (4, 7)
    expected = model().logits(torch.cat([ids, next_ids], dim=1))[:, 4:]
    assert_close(model().logits(next_ids, cache=cache), expected, atol=1e-5, rtol=0)


def test_expanded_and_reordered_rows_go_on_as_their_source():
    """A beam continues with the keys and values of another beam."""
    ids, next_ids = random_ids(2, 4, 1), random_ids(4, 2, 2)
    cache = model().new_cache(2, 6)
    model().logits(ids, cache=cache)
    cache.expand(2)  # rows 0 0 1 1
    source = torch.tensor([3, 0, 0, 2])
    cache.reorder(source)
    whole = torch.cat([ids.repeat_interleave(2, dim=0)[source], next_ids], dim=1)
    expected = model().logits(whole)[:, 4:]
    assert_close(model().logits(next_ids, cache=cache), expected, atol=1e-5, rtol=0)


def test_a_full_cache_refuses_more_tokens():
    """Tokens beyond the cache's size overwrite others or crash without a word."""
    cache = KVCache(model().config, batch_size=1, max_length=3)
    model().logits(random_ids(1, 2, 0), cache=cache)
    with pytest.raises(RequestError, match="holds 2 of at most 3 tokens and cannot take 2") as e:
        model().logits(random_ids(1, 2, 1), cache=cache)
    assert "max_length" in e.value.hint
    assert cache.length == 2


@EXAMPLES
@given(data=st.data())
def test_a_cache_that_grew_or_lost_rows_goes_on_as_before(data):
    """Growing or selecting rows loses keys, or the tokens that positions follow from."""
    lengths = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)), label="lengths")
    ids = random_ids(3, sum(lengths), data.draw(st.integers(0, 99), label="seed"))
    rows = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=4)))
    small = model().new_cache(3, lengths[0])
    model().logits(ids[:, : lengths[0]], cache=small)
    small.grow(sum(lengths))
    small.select(rows)
    found = model().logits(ids[rows, lengths[0] :], cache=small)
    expected = model().logits(ids[rows])[:, lengths[0] :]
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(small.input_ids, ids[rows])
