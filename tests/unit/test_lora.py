"""LoRA: what is trained, what it computes, and its files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.func import functional_call
from torch.testing import assert_close

from helpers_hf import network_config, write_folder
from helpers_models import NETWORKS, random_model, tiny_config
from openglm.adapters import files, lora
from openglm.adapters.frozen import plain_weight
from openglm.adapters.lora import LoraConfig, adapted, add_lora, merge
from openglm.checkpoints import load_checkpoint
from openglm.checkpoints.maps import glm4
from openglm.errors import CheckpointError, ConfigError
from openglm.language_model import LanguageModel
from openglm.nn.masks import MaskSpec
from openglm.quant.linear import PackedLinear, RowwiseLinear
from openglm.quant.transform import QuantizedWeights, assign, quantized
from openglm.scheme import find_scheme

CONFIG = LoraConfig(rank=3, alpha=6.0, dropout=0.0)


def run(model, seed=5):
    """Logits of a few tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(60, (2, 7), generator=generator)
    places = torch.arange(7).expand(2, 7)
    return model.logits(model(ids, places, torch.zeros_like(ids), MaskSpec.causal()))


def with_products(model, seed=3):
    """An adapted network whose products are not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, layer in adapted(model):
            layer.lora_b.normal_(0, 0.3, generator=generator)
    return model


def assert_same(found, expected):
    """Equal but for sums in another order, whose errors go with the largest terms."""
    assert float((found - expected).abs().max()) <= 2e-5 * float(expected.abs().max())


@pytest.fixture(params=NETWORKS)
def config(request):
    return tiny_config(**NETWORKS[request.param])


def test_a_new_adapter_changes_nothing(config):
    """Training begins somewhere else than at the model that was chosen."""
    model = random_model(config)
    before = run(model)
    add_lora(model, CONFIG, seed=1)
    assert_close(run(model), before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)


def test_gradients_are_those_of_the_whole_weight(config):
    """The adapter learns something else than W + alpha / rank * B A says."""
    model = random_model(config)
    plain = {name: p.clone() for name, p in model.named_parameters()}
    add_lora(model, CONFIG, seed=1)
    with_products(model)
    run(model).square().mean().backward()
    leaves, weights = {}, dict(plain)
    for name, layer in adapted(model):
        a, b = layer.lora_a.detach().clone(), layer.lora_b.detach().clone()
        a = leaves.setdefault(id(layer.lora_a), a.requires_grad_())  # shared by query, key, value
        leaves[name] = b.requires_grad_()
        weights[f"{name}.weight"] = plain[f"{name}.weight"] + 2.0 * b @ a
    reference = random_model(config)
    bound = _Bound(reference, weights)
    run(bound).square().mean().backward()
    for name, layer in adapted(model):
        assert_same(layer.lora_b.grad, leaves[name].grad)
        assert_same(layer.lora_a.grad, leaves[id(layer.lora_a)].grad)


class _Bound:
    """A network that computes with other weights, which may have gradients."""

    def __init__(self, model, weights):
        self.model, self.weights = model, weights

    def __call__(self, *inputs):
        return functional_call(self.model, self.weights, inputs)

    def logits(self, hidden):
        return self.model.logits(hidden)


@pytest.mark.parametrize("name", ["int8", "int4", "int4-g32", "int8-g32"])
def test_beside_integers_it_learns_as_beside_the_floats_they_stand_for(name):
    """QLoRA has other gradients than LoRA on the dequantized weights."""
    config = tiny_config(hidden_size=48, intermediate_size=96, **NETWORKS["chatglm2"])
    scheme = find_scheme(name)
    plain = {n: p.data for n, p in random_model(config).named_parameters()}
    weights = QuantizedWeights(plain, config, scheme)
    integers = quantized(random_model(config), scheme)
    for n in weights:
        assign(integers, n, weights[n], torch.float32, "cpu")
    floats = random_model(config)
    for layer_name, layer in integers.named_modules():
        if isinstance(layer, PackedLinear | RowwiseLinear):
            floats.get_submodule(layer_name).weight.data = plain_weight(layer, torch.float32)
    models = (integers, floats)
    for model in models:
        add_lora(model, CONFIG, seed=1)
        with_products(model)
        run(model).square().mean().backward()
    assert_close(run(integers), run(floats), rtol=1e-4, atol=1e-5)
    pairs = zip(adapted(integers), adapted(floats), strict=True)
    for (_, one), (_, other) in pairs:
        assert_same(one.lora_b.grad, other.lora_b.grad)
        assert_same(one.lora_a.grad, other.lora_a.grad)


def test_merged_it_computes_the_same(config):
    """An adapter that was merged into the weights answers differently."""
    model = random_model(config)
    names = set(dict(model.named_parameters()))
    add_lora(model, CONFIG, seed=1)
    with_products(model)
    expected = run(model)
    merge(model)
    assert set(dict(model.named_parameters())) == names
    assert_close(run(model), expected, rtol=1e-4, atol=1e-4)


def test_integers_are_not_merged_into():
    """Rounding a product away would leave the model as it was, without a word."""
    config = tiny_config(hidden_size=48, **NETWORKS["chatglm2"])
    model = quantized(random_model(config), find_scheme("int4-g32"))
    add_lora(model, CONFIG, seed=1)
    with pytest.raises(ConfigError, match="quantized"):
        merge(model)


@pytest.mark.parametrize("targets", [[], ["dense"], ["query_key_value", "dense_4h_to_h"]])
def test_files_come_back(tmp_path, targets):
    """A file that was written is read as another adapter: fused layers are cut wrongly."""
    config = network_config("chatglm3", 60)
    settings = LoraConfig(rank=3, alpha=6.0, dropout=0.0, targets=targets)
    model = random_model(config)
    add_lora(model, settings, seed=1)
    with_products(model)
    files.save_lora(tmp_path, model, settings, "tiny")
    other = random_model(config)
    found = files.load_lora(tmp_path, other)
    assert (found.rank, found.alpha) == (3, 6.0)
    assert torch.equal(run(other), run(model))
    assert files.is_adapter(tmp_path)
    assert files.base_of(tmp_path) == "tiny"


def test_names_are_official(tmp_path):
    """Peft finds no module for a tensor."""
    config = network_config("chatglm3", 60)
    model = random_model(config)
    add_lora(model, CONFIG, seed=1)
    files.save_lora(tmp_path, model, CONFIG, "tiny")
    stored = load_file(tmp_path / "adapter_model.safetensors")
    name = "base_model.model.transformer.encoder.layers.1.self_attention.query_key_value"
    width = config.hidden_size
    assert stored[f"{name}.lora_A.weight"].shape == (3, width)
    assert len(stored[f"{name}.lora_B.weight"]) == width + 2 * config.kv_heads * config.head_dim
    assert len(stored) == 2 * config.num_layers
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["query_key_value"]


@pytest.fixture
def stored(tmp_path):
    """A folder with an adapter, and its network."""
    config = tiny_config(**NETWORKS["chatglm2"])
    model = random_model(config)
    add_lora(model, CONFIG, seed=1)
    files.save_lora(tmp_path, model, CONFIG, "tiny")
    return tmp_path, config


def test_another_model_is_refused(stored):
    """An adapter beside another model writes nonsense, and nobody knows why."""
    folder, config = stored
    with pytest.raises(CheckpointError, match="trained for 'tiny'"):
        files.load_lora(folder, random_model(config, seed=9))
    scheme = find_scheme("int4")
    integers = quantized(random_model(config), scheme)
    weights = QuantizedWeights(
        {n: p.data for n, p in random_model(config).named_parameters()}, config, scheme
    )
    for name in weights:
        assign(integers, name, weights[name], torch.float32, "cpu")
    files.load_lora(folder, integers)  # the same, quantized


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_same_model_in_another_dtype(stored, dtype):
    """An adapter is refused beside its own model, which was rounded on the way."""
    folder, config = stored
    files.load_lora(folder, random_model(config).to(dtype))


def test_names_are_those_of_the_files_that_were_opened(tmp_path):
    """An adapter of a model in transformers' layout has names that nobody knows there."""
    config = network_config("chatglm3", 60)
    model = random_model(config)
    add_lora(model, CONFIG, 1, glm4.FAMILY)
    with_products(model)
    files.save_lora(tmp_path, model, CONFIG, "tiny", glm4.FAMILY)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["k_proj", "q_proj", "v_proj"]
    other = random_model(config)
    files.load_lora(tmp_path, other)
    assert torch.equal(run(other), run(model))


@pytest.mark.parametrize("change", ["missing", "unknown", "another shape"])
def test_tensors_are_all_accounted_for(stored, change):
    """A tensor that is missing is drawn anew, or an unknown one is passed over."""
    folder, config = stored
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    if change == "missing":
        del tensors[name]
    elif change == "unknown":
        tensors[name.replace("layers.0", "layers.9")] = tensors[name].clone()
    else:
        tensors[name] = torch.zeros(3, 23)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=change):
        files.load_lora(folder, random_model(config))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("peft_type", "IA3", "kind 'IA3'"),
        ("use_dora", True, "use_dora"),
        ("init_lora_weights", "pissa", "changes the base"),
        ("alora_invocation_tokens", [1], "alora"),
        ("bias", "all", "bias='all'"),
        ("target_modules", "all-linear", "no list"),
        ("target_modules", ["q"], "no layers 'q'"),
        ("r", "x", "cannot be read"),
        ("r", 10**12, "tensors of"),
        ("r", 3.5, "tensors of"),
    ],
)
def test_other_adapters_are_refused(stored, key, value, message):
    """A variant of peft's is read as plain LoRA."""
    folder, config = stored
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises((CheckpointError, ConfigError), match=message):
        files.load_lora(folder, random_model(config))


def test_every_family_has_names():
    """LoRA works for some models only."""
    for network in NETWORKS.values():
        for every in lora.sites(tiny_config(**network)):
            assert {name.rpartition(".")[2] for site in every for name in site.targets} >= {
                *("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")
            }


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["chatglm", "chatglm3"])
def test_peft_computes_the_same(tmp_path, kind):
    """Other programs read the file as another adapter, or not at all; or we theirs."""
    peft = pytest.importorskip("peft", reason="the bridge is an extra: '.[hf]'")
    transformers = pytest.importorskip("transformers", reason="the bridge is an extra: '.[hf]'")
    __import__("openglm.hf")  # makes the old classes known

    write_folder(tmp_path / "base", kind, vocab_size=60)
    loaded = load_checkpoint(tmp_path / "base", torch.float32, "cpu")
    model = loaded.model
    add_lora(model, CONFIG, seed=1)
    with_products(model)
    files.save_lora(tmp_path / "ours", model, CONFIG, str(tmp_path / "base"))
    bridge = transformers.AutoModel.from_pretrained(tmp_path / "base").float()
    tuned = peft.PeftModel.from_pretrained(bridge, tmp_path / "ours").eval()
    merge(model)
    ours = LanguageModel(model, None, "tiny", loaded.token_ids)
    mask, sop = (ours.token_ids.get(role, 1) for role in ("gmask", "sop"))
    ids = torch.tensor([[5, 6, mask, sop, 7, 8], [9, 4, mask, sop, 3, 2]])
    with torch.no_grad():
        found = tuned(input_ids=ids).logits
    assert_close(found.float(), ours.logits(ids), rtol=1e-4, atol=1e-4)
    tuned.save_pretrained(tmp_path / "theirs")
    other = load_checkpoint(tmp_path / "base", torch.float32, "cpu").model
    files.load_lora(tmp_path / "theirs", other)
    merge(other)
    for name, parameter in other.named_parameters():
        assert_close(parameter, model.get_parameter(name), rtol=1e-5, atol=1e-6)
