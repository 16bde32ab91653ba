"""P-Tuning v2: what is trained is what is read again, at the place where it is used."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from helpers_models import NETWORKS, random_model, tiny_config
from openglm.adapters.prefix import PrefixConfig, PrefixEncoder, load_prefix, save_prefix
from openglm.errors import ConfigError
from openglm.nn.context import DenseContext
from openglm.nn.masks import MaskSpec


def some_tokens():
    ids = torch.randint(60, (2, 7), generator=torch.Generator().manual_seed(5))
    return ids, torch.arange(7).expand(2, 7), torch.zeros_like(ids)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("projection", [False, True])
def test_training_sees_what_inference_does(network, projection, tmp_path):
    """Another network is trained than the one that answers."""
    config = tiny_config(**NETWORKS[network])
    model = random_model(config)
    settings = PrefixConfig(length=3, projection=projection, dropout=0.0)
    encoder = PrefixEncoder(config, settings, seed=1)
    inputs, mask = some_tokens(), MaskSpec.prefix(torch.tensor([2, 4]))
    context = DenseContext(mask, 7, prefix=encoder())
    trained = model.run(*inputs, context)
    trained.square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in encoder.parameters())

    save_prefix(tmp_path, encoder)
    model.prefix = load_prefix(tmp_path, config)
    with torch.no_grad():
        answered = model(*inputs, mask, model.new_cache(2, 7))
    assert_close(trained.detach(), answered, rtol=1e-4, atol=1e-5)
    model.prefix = None
    assert not torch.allclose(model(*inputs, mask), answered, atol=1e-3)


def test_names_and_shapes_are_official(tmp_path):
    """Old scripts cannot read the file."""
    config = tiny_config(**NETWORKS["chatglm2"])
    save_prefix(tmp_path, PrefixEncoder(config, PrefixConfig(length=4), seed=1))
    (stored,) = load_file(tmp_path / "adapter_model.safetensors").items()
    assert stored[0] == "transformer.prefix_encoder.embedding.weight"
    assert stored[1].shape == (4, 2 * 3 * 2 * 2)


def test_the_seed_is_that_of_the_run():
    """Runs cannot be repeated, or a run changes what others draw."""
    config = tiny_config()
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one, other = (PrefixEncoder(config, PrefixConfig(length=2), seed=7) for _ in range(2))
    assert torch.equal(one.embedding.weight, other.embedding.weight)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_block_without_a_place_for_it():
    """CodeGeeX-13B's last block attends to something else than was trained."""
    with pytest.raises(ConfigError, match="takes no prefix"):
        PrefixEncoder(tiny_config(top_query=True), PrefixConfig(), seed=1)
    with pytest.raises(ConfigError, match="at least 1"):
        PrefixConfig(length=0)
