"""Plans against the official hardware tables, and the formulas against what torch holds."""

from __future__ import annotations

import json

import pytest
import torch

from helpers_models import NETWORKS, tiny_config
from openglm.cli.main import _run
from openglm.errors import UsageError
from openglm.memory import saved_bytes, streamed_bytes, weight_bytes
from openglm.model import build
from openglm.nn.masks import MaskSpec
from openglm.planning import Gpus, plan_inference, plan_training
from openglm.registry import preset, presets

GIB = 2**30
STILL = {"embedding_dropout": 0.0, "attention_dropout": 0.0, "hidden_dropout": 0.0}


@pytest.mark.parametrize(
    ("name", "dtype", "gpus", "context", "fits"),
    [
        # ChatGLM2's README: an INT4 dialogue of 8K tokens in 6 GB, which ChatGLM-6B cannot hold.
        ("chatglm2-6b", "int4", "6GiB", 8192, True),
        ("chatglm-6b", "int4", "6GiB", 1024, True),
        ("chatglm-6b", "float16", "13GiB", 512, True),
        ("chatglm2-6b", "float16", "13.1GiB", 2048, True),
        ("chatglm2-6b", "int8", "8.2GB", 2048, True),
        ("chatglm2-6b", "float16", "10GiB", 2048, False),
        # GLM-130B's README.
        ("glm-130b", "float16", "8x40GiB", 2048, True),
        ("glm-130b", "int8", "8x24GiB", 2048, True),
        ("glm-130b", "int4", "4x24GiB", 2048, True),
        ("glm-130b", "int4", "8x11GiB", 2048, True),
        ("glm-130b", "int8", "4x24GiB", 2048, False),
        # CodeGeeX's README: 27 GB in fp16, 15 GB in INT8.
        ("codegeex-13b", "float16", "27GiB", 512, True),
        ("codegeex-13b", "int8", "15GiB", 512, True),
    ],
)
def test_official_tables(name, dtype, gpus, context, fits):
    """Users are told to buy a card that is too small, or one more than they need."""
    cards = Gpus.parse(gpus)
    plan = plan_inference(
        preset(name).model, dtype, context, 1, "gpu", cards.count, cards.bytes_each
    )
    assert plan.fits is fits, f"{plan.total / GIB:.1f} GiB"


@pytest.mark.parametrize("name", NETWORKS)
def test_saved_bytes_are_what_autograd_keeps(name):
    """Training runs out of memory where the plan said that it fits."""

    def kept(num_layers):
        config = tiny_config(**STILL, **NETWORKS[name], num_layers=num_layers)
        network = build(config, "cpu").train()
        own = {p.untyped_storage().data_ptr() for p in network.parameters()}
        found = {}

        def note(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                found[storage.data_ptr()] = tensor
            return tensor

        ids = torch.zeros((2, 40), dtype=torch.int64)
        positions = torch.arange(40).expand(2, 40)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            hidden = network(ids, positions, torch.zeros_like(ids), MaskSpec.causal())
        assert hidden.requires_grad
        masks = {p for p, t in found.items() if t.shape == (1, 1, 40, 40)}
        return config, sum(t.untyped_storage().nbytes() for p, t in found.items() if p not in masks)

    (config, two), (_, three) = kept(2), kept(3)
    assert saved_bytes(config, 80) == pytest.approx(three - two, rel=0.001)


@pytest.mark.parametrize("name", presets())
def test_every_preset_has_a_plan(name):
    """A model is missing, or its parts do not add up."""
    config = preset(name).model
    for dtype in ("float32", "bfloat16", "int8", "int4"):
        plan = plan_inference(config, dtype)
        assert plan.total == sum(part.bytes for part in plan.parts)
        assert 0 < streamed_bytes(config, dtype) <= weight_bytes(config, dtype)
    for method in ("full", "lora", "ptuning"):
        assert (
            plan_training(config, method, "bfloat16").total
            > plan_inference(config, "bfloat16").parts[0].bytes
        )


@pytest.mark.parametrize(
    ("text", "count", "num_bytes"),
    [("24GiB", 1, 24 * GIB), ("4x24GiB", 4, 24 * GIB), ("8 x 11GB", 8, 11e9), ("80g", 1, 80 * GIB)],
)
def test_gpus(text, count, num_bytes):
    """GB and GiB differ by 7 %."""
    assert Gpus.parse(text) == Gpus(count, num_bytes)


def test_bad_requests():
    """A plan for something impossible looks like one that can be carried out."""
    config = preset("chatglm2-6b").model
    for text in ("0x24GiB", "many", "24", "-1GiB"):
        with pytest.raises(UsageError, match="is not understood"):
            Gpus.parse(text)
    with pytest.raises(UsageError, match="32,768 positions"):
        plan_inference(config, "int4", 40_000)
    with pytest.raises(UsageError, match="unknown dtype 'int3'"):
        plan_inference(config, "int3")
    with pytest.raises(UsageError, match="cannot be shared out to 3"):
        plan_inference(config, "int4", num_devices=3)
    with pytest.raises(UsageError, match="unknown training method 'magic'"):
        plan_training(config, "magic", "bfloat16")
    with pytest.raises(UsageError, match="full training of int4"):
        plan_training(config, "full", "int4")


def test_keys_and_values_of_another_dtype(capsys):
    """`glm plan` says nothing of the option that `glm serve` has."""
    found = {}
    for kv_dtype in ("float32", "bfloat16", "int8"):
        words = ["plan", "chatglm2-6b", "--context", "8192", "--kv-dtype", kv_dtype]
        assert _run([*words, "--json"], False) == 0
        plan = json.loads(capsys.readouterr().out)
        assert plan["kv_dtype"] == kv_dtype
        found[kv_dtype] = plan["parts"]["keys and values"]
        assert _run(words, False) == 0
        assert f"bytes in {kv_dtype}" in capsys.readouterr().out
    assert found["float32"] == 2 * found["bfloat16"] == 8192 * 57_344
    assert found["int8"] == 8192 * 28 * 2 * 2 * (128 + 4)
    assert _run(["plan", "chatglm2-6b", "--kv-dtype", "int4"], False) == 2
    assert "unknown kv_dtype 'int4'" in capsys.readouterr().err
    assert _run(["plan", "chatglm2-6b", "--kv-dtype", "int8", "--train", "lora"], False) == 2
    assert "has no effect on --train" in capsys.readouterr().err


def test_a_batch_is_trained_with_its_tokens():
    """A plan for one sequence is shown for a batch of many."""
    config = preset("chatglm2-6b").model
    one = plan_training(config, "lora", "bfloat16", 512)
    many = plan_training(config, "lora", "bfloat16", 512, batch_size=4)
    for name in ("activations", "logits"):
        found = [next(p.bytes for p in plan.parts if p.name == name) for plan in (one, many)]
        assert found[1] == 4 * found[0]
