"""`LanguageModel.embed`: vectors of texts."""

from __future__ import annotations

import pytest
import torch

import openglm
from helpers_gguf import small_tokenizer
from helpers_models import NETWORKS, context_of, random_model, tiny_config
from openglm.errors import ContextOverflow, NumericalError, RequestError
from openglm.language_model import LanguageModel
from openglm.nn.masks import MaskSpec

TEXTS = ["The river runs to the sea.", "白日依山尽", "a", "The river " * 40]
TOLERANCE = 2e-6
"""Of numbers up to 1: the sums of a float32 network in another order."""


@pytest.fixture(scope="module")
def mini():
    return openglm.load()


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    tokenizer = small_tokenizer("glm4", tmp_path_factory.mktemp("glm4"))
    sizes = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 256}
    network = random_model(tiny_config(**NETWORKS["chatglm2"] | sizes))
    return LanguageModel(network, tokenizer, "causal")


def mean(hidden):
    """(T, C) -> (C,) of length 1."""
    total = hidden.double().sum(dim=0)
    return (total / total.norm()).float()


def test_a_causal_model_reads_from_left_to_right(causal):
    """The mean is of other tokens, or of states that saw what follows."""
    for text in TEXTS[:3]:
        special = causal.tokenizer.special
        ids = torch.tensor([[special.gmask_id, special.sop_id, *causal.tokenizer.encode(text)]])
        positions = torch.arange(ids.shape[1])[None]
        hidden = causal.network(ids, positions, torch.zeros_like(ids), MaskSpec.causal())
        (found,) = causal.embed([text])
        torch.testing.assert_close(found, mean(hidden[0, 2:]), atol=TOLERANCE, rtol=0)


def test_glm_reads_a_text_whole(mini):
    """The mean is of other tokens, or of states that did not see what follows."""
    for text in TEXTS[:3]:
        context = context_of(mini, f"{text}[gMASK]")
        count = len(mini.tokenizer.encode(text))
        ids = torch.tensor([context])
        mask = MaskSpec.prefix(torch.tensor([len(context)]))
        hidden = mini.network(ids, torch.arange(len(context))[None], torch.zeros_like(ids), mask)
        (found,) = mini.embed([text])
        expected = mean(hidden[0, 1 : 1 + count])
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["mini", "causal"])
def test_vectors_do_not_depend_on_neighbours(request, name):
    """A text has another vector beside longer ones, in another order, or twice."""
    model = request.getfixturevalue(name)
    together = model.embed([*TEXTS, *reversed(TEXTS)])
    assert together.shape == (8, model.config.hidden_size)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together.norm(dim=1), torch.ones(8), atol=1e-6, rtol=0)
    for index, text in enumerate([*TEXTS, *reversed(TEXTS)]):
        alone = model.embed([text])[0]
        torch.testing.assert_close(together[index], alone, atol=TOLERANCE, rtol=0)


def test_like_texts_have_like_vectors(mini):
    """Vectors say nothing of their texts."""
    texts = ["The cat sat on the mat.", "A cat sits on a mat.", "从前有一座山。"]
    first, second, other = mini.embed(texts)
    assert first @ second > first @ other


def test_nothing_and_what_is_no_text(mini, causal):
    """No texts are an error, or what has no vector gets one."""
    assert mini.embed([]).shape == (0, mini.config.hidden_size)
    for wrong, message in (
        ("a", "list"),
        ([""], "no tokens"),
        ([[5]], "not a text"),
        ([None], "not a text"),
    ):
        with pytest.raises(RequestError, match=message):
            mini.embed(wrong)
    with pytest.raises(ContextOverflow):
        causal.embed(["x " * 300])


def test_a_network_without_numbers_gives_no_vector(causal):
    """NaN is passed on as a vector."""
    broken = LanguageModel(random_model(causal.config), causal.tokenizer, "broken")
    broken.network.final_norm.weight.data.fill_(torch.nan)
    with pytest.raises(NumericalError):
        broken.embed(["a"])
