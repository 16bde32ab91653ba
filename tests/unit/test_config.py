"""`ModelConfig` refuses what cannot be a network, and the presets are the published ones."""

from __future__ import annotations

import dataclasses
import json

import pytest

from openglm.config import ModelConfig
from openglm.errors import ConfigError
from openglm.model import build
from openglm.registry import preset, presets

SIZES = {
    "vocab_size": 96,
    "hidden_size": 24,
    "num_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 16,
    "intermediate_size": 40,
}

# Section 1.2 of the fact sheet: layers, hidden, heads, positions, vocabulary, parameters.
PUBLISHED = {
    "glm-base": (12, 768, 12, 512, 30592, 109_338_624),
    "glm-doc": (24, 1024, 16, 512, 30592, 334_688_256),
    "glm-large": (24, 1024, 16, 512, 30592, 334_688_256),
    "glm-roberta-large": (24, 1024, 16, 512, 50304, 354_873_344),
    "glm-large-chinese": (24, 1024, 16, 1024, 50048, 355_659_776),
    "glm-410m": (30, 1024, 16, 512, 30592, 410_265_600),
    "glm-roberta-1.25": (24, 1152, 18, 1024, 50304, 442_879_488),
    "glm-515m": (30, 1152, 18, 512, 30592, 514_632_960),
    "glm-2b": (36, 2048, 32, 1024, 50304, 1_920_122_880),
    "glm-10b-chinese": (48, 4096, 64, 1024, 50048, 9_879_633_920),
    "glm-10b": (48, 4096, 64, 1024, 50304, 9_880_682_496),
    # Sections 1.1 of the later fact sheets; tied tensors count once.
    "chatglm-6b": (28, 4096, 32, 2048, 130528, 6_173_286_400),
    "chatglm-6b-first": (28, 4096, 32, 2048, 150528, 6_255_206_400),
    "chatglm2-6b": (28, 4096, 32, 32768, 65024, 6_243_584_000),
    "chatglm3-6b": (28, 4096, 32, 8192, 65024, 6_243_584_000),
    "chatglm3-6b-32k": (28, 4096, 32, 32768, 65024, 6_243_584_000),
    "chatglm3-6b-128k": (28, 4096, 32, 131072, 65024, 6_243_584_000),
    "codegeex2-6b": (28, 4096, 32, 8192, 65024, 6_243_584_000),
    "glm-4-9b": (40, 4096, 32, 131072, 151552, 9_399_951_360),
    "glm-4-9b-0414": (40, 4096, 32, 32768, 151552, 9_400_279_040),
    "glm-4-9b-chat-1m": (40, 4096, 32, 1048576, 151552, 9_483_857_920),
    "codegeex-13b": (39, 5120, 40, 2048, 52224, 12_873_943_040),
    "glm-130b": (70, 12288, 96, 2048, 150528, 128_697_794_560),
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [0, -4, 4.0, "4", True, None])
def test_a_size_is_a_positive_integer(name: str, value: object) -> None:
    """A config file with a wrong size would fail deep inside torch instead of naming the key."""
    with pytest.raises(ConfigError, match=f"^{name}=.* must be a positive integer"):
        ModelConfig(**SIZES | {name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["norm_eps", "hidden_dropout", "initializer_range"])
@pytest.mark.parametrize("value", ["0.1", None, True])
def test_a_float_field_is_a_number(name: str, value: object) -> None:
    """A quoted number in a config file would surface as a TypeError in the middle of training."""
    with pytest.raises(ConfigError, match=f"^{name}=.* must be a number"):
        ModelConfig(**SIZES | {name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["embedding_dropout", "attention_dropout", "hidden_dropout"])
@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, float("nan")])
def test_a_dropout_is_a_probability_below_one(name: str, value: float) -> None:
    """Dropout 1 erases the network, and torch would only complain in the first step."""
    with pytest.raises(ConfigError, match=rf"{name}=.* must be in \[0, 1\)"):
        ModelConfig(**SIZES | {name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["norm_eps", "initializer_range"])
@pytest.mark.parametrize("value", [-1e-5, float("nan"), float("inf")])
def test_scales_are_finite_and_not_negative(name: str, value: float) -> None:
    """A negative or NaN epsilon loads without complaint, and every logit is NaN."""
    with pytest.raises(ConfigError, match=name):
        ModelConfig(**SIZES | {name: value})  # type: ignore[arg-type]


def test_a_wrong_axis_value_is_refused_with_the_allowed_ones() -> None:
    """A typing slip in an axis would build some other network than the checkpoint needs."""
    with pytest.raises(ConfigError, match=r"'rotari' is not one of learned_2d, .*rotary_2d$"):
        ModelConfig(**SIZES, position="rotari")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"'gelu' is not one of gelu_tanh, gelu_erf, "):
        ModelConfig(**SIZES, activation="gelu")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"position": "rotary", "top_query": True}, "top_query goes with learned positions"),
        ({"position": "learned", "rotary_dim": 4}, "rotary_dim=4 means nothing with learned"),
        ({"position": "rotary", "rotary_dim": 5}, "rotary_dim=5 must be a multiple of 2"),
        ({"position": "rotary_2d", "rotary_dim": 6}, "rotary_dim=6 must be a multiple of 4"),
        ({"position": "rotary", "rotary_dim": 16}, "at most the head_dim of 8"),
        ({"position": "rotary", "rope_theta": 0.0}, "rope_theta=0 must be above 0"),
        ({"num_key_value_heads": 2}, "3 is not divisible by num_key_value_heads=2"),
        ({"qkv_bias": "no"}, "qkv_bias='no' must be true or false"),
    ],
)
def test_axes_that_contradict_each_other(axes: dict[str, object], said: str) -> None:
    """An axis is accepted and ignored, or the first forward pass fails."""
    with pytest.raises(ConfigError, match=said):
        ModelConfig(**SIZES | axes)  # type: ignore[arg-type]


def test_heads_must_divide_the_hidden_size() -> None:
    """Attention would drop the rest of the channels."""
    with pytest.raises(ConfigError, match=r"hidden_size=24 is not divisible by.*heads=5"):
        ModelConfig(**SIZES | {"num_attention_heads": 5})  # type: ignore[arg-type]
    assert ModelConfig(**SIZES).head_dim == 8  # type: ignore[arg-type]


def test_a_config_cannot_be_changed() -> None:
    """Code that edits a shared config changes the architecture of models built elsewhere."""
    config = ModelConfig(**SIZES)  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_size = 48  # type: ignore[misc]


def test_a_config_survives_json() -> None:
    """A saved checkpoint would come back as another architecture."""
    config = ModelConfig(**SIZES, position="learned", norm_eps=1e-6)  # type: ignore[arg-type]
    restored = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert restored == config
    assert restored.to_dict()["position"] == "learned"


def test_unknown_and_missing_keys_are_named() -> None:
    """A misspelt key would silently fall back to a default."""
    with pytest.raises(ConfigError, match="'hiden_size'") as unknown:
        ModelConfig.from_dict(SIZES | {"hiden_size": 24})
    assert "did you mean 'hidden_size'" in unknown.value.hint
    with pytest.raises(ConfigError, match=r"lacks vocab_size, num_layers$"):
        ModelConfig.from_dict(
            {k: v for k, v in SIZES.items() if k not in ("vocab_size", "num_layers")}
        )


@pytest.mark.parametrize("position", ["learned_2d", "learned"])
def test_the_parameter_count_is_that_of_the_network(position: str) -> None:
    """`glm info` and memory plans would show wrong numbers."""
    config = ModelConfig(**SIZES, position=position)  # type: ignore[arg-type]
    built = sum(parameter.numel() for parameter in build(config).parameters())
    assert built == config.num_parameters
    assert config.position_rows == (17 if position == "learned_2d" else 16)


def test_the_presets_are_the_published_models() -> None:
    """A published checkpoint would be unknown, or listed out of order of size."""
    assert set(presets()) == set(PUBLISHED)
    counts = [value.parameters for value in presets().values()]
    assert counts == sorted(counts)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_shape_and_exact_parameter_count(name: str) -> None:
    """The official weights of this model would not load, or `glm info` would misreport it."""
    layers, hidden, heads, positions, vocabulary, parameters = PUBLISHED[name]
    value = preset(name)
    model = value.model
    assert (model.num_layers, model.hidden_size, model.num_attention_heads) == (
        layers,
        hidden,
        heads,
    )
    assert (model.max_position_embeddings, model.vocab_size) == (positions, vocabulary)
    if model.position == "learned_2d":
        assert (model.intermediate_size, model.head_dim) == (4 * hidden, 64)
    network = build(model, device="meta")
    assert sum(tensor.numel() for tensor in network.parameters()) == parameters
    assert value.parameters == model.num_parameters == parameters


def test_a_preset_is_found_by_each_of_its_names() -> None:
    """Users of the hub names and of the old configuration names would be told "unknown model"."""
    assert preset("THUDM/glm-10b-chinese") is preset("glm-10b-chinese")
    assert preset("blocklm_2B") is preset("glm-2b")
    assert preset("1.25_generation") is preset("glm-410m")
    names = [name for key, value in presets().items() for name in (key, *value.aliases)]
    assert len(names) == len(set(names)), "two presets share a name"
    assert all(preset(alias) is value for value in presets().values() for alias in value.aliases)


def test_an_unknown_model_suggests_a_near_one() -> None:
    """After a typing slip the user would have to search the documentation for the name."""
    with pytest.raises(ConfigError, match="unknown model 'glm-10b-chinse'") as caught:
        preset("glm-10b-chinse")
    assert caught.value.hint.startswith("did you mean 'glm-10b-chinese'")
    assert all(name in caught.value.hint for name in PUBLISHED)
