"""Old LoRA recipes on `openglm.hf`: `target_modules=["query_key_value"]`, as they were written."""

from __future__ import annotations

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForCausalLM

import openglm.hf
from helpers_hf import write_folder
from openglm.errors import UsageError

VOCAB = 90
LAYERS = {
    "chatglm": "transformer.layers.{}.attention.query_key_value",
    "chatglm2": "transformer.encoder.layers.{}.self_attention.query_key_value",
}
# peft 0.21 reads a property that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

assert openglm.hf.register


@pytest.fixture(params=LAYERS)
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, tmp_path):
    write_folder(tmp_path / kind, kind, vocab_size=VOCAB)
    return tmp_path / kind


def batch(kind):
    ids = torch.randint(4, 80, (4, 12), generator=torch.Generator().manual_seed(1))
    if kind == "chatglm":
        ids[:, 7:9] = torch.tensor([VOCAB - 2, VOCAB - 3])  # [gMASK] sop
    return ids


def adapted(model, **options):
    torch.manual_seed(0)
    config = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM, r=4, lora_alpha=16, lora_dropout=0.1, **options
    )
    return peft.get_peft_model(model, config)


def train(model, ids, num_steps=20):
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=2e-2)
    model.train()
    losses = []
    for _ in range(num_steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def test_lora(kind, folder, tmp_path):
    """An adapter trains nothing, is saved under names of our own, or is merged wrongly."""
    ids = batch(kind)
    plain = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    model = adapted(
        AutoModelForCausalLM.from_pretrained(folder), target_modules=["query_key_value"]
    )
    losses = train(model, ids)
    assert losses[-1] < 0.5 * losses[0]
    tuned = model(input_ids=ids).logits
    with model.disable_adapter():
        assert_close(model(input_ids=ids).logits, plain, atol=0, rtol=0)

    model.save_pretrained(tmp_path / "adapter")
    names = set(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    modules = [f"base_model.model.{LAYERS[kind].format(layer)}" for layer in range(3)]
    assert names == {f"{module}.lora_{x}.weight" for module in modules for x in "AB"}

    again = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(folder), tmp_path / "adapter")
    assert_close(again.eval()(input_ids=ids).logits, tuned, atol=0, rtol=0)
    merged = again.merge_and_unload()
    # The products are summed in another order, over weights of size 1.
    assert_close(merged(ids).logits, tuned, atol=2e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    assert_close(
        AutoModel.from_pretrained(tmp_path / "merged")(ids).logits,
        merged(ids).logits,
        atol=0,
        rtol=0,
    )


def test_peft_knows_the_layers_by_itself(kind, folder):
    """The table of layers by model type in peft does not fit ours."""
    model = adapted(AutoModel.from_pretrained(folder))
    assert model.peft_config["default"].target_modules == {"query_key_value"}


def test_all_linear_layers_and_checkpointing(kind, folder):
    """Under checkpointing an adapter on every layer gets no gradients, or others."""
    targets = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
    model = adapted(AutoModel.from_pretrained(folder), target_modules=targets)
    model.eval()  # no dropout
    ids = batch(kind)

    def gradients():
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    plain = gradients()
    model.base_model.model.activation_checkpointing_enable()
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for found, expected in zip(gradients(), plain, strict=True):
        assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert len(plain) == 2 * len(targets) * 3


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_the_head_can_be_trained_whole(kind, folder):
    """`modules_to_save` has no effect on a head that is looked up once."""
    model = AutoModel.from_pretrained(folder)
    head = "lm_head" if kind == "chatglm" else "output_layer"
    model = adapted(model, target_modules=["query_key_value"], modules_to_save=[head])
    trained = [name for name, p in model.named_parameters() if p.requires_grad and head in name]
    assert trained
    before = model(input_ids=batch(kind)).logits
    with torch.no_grad():
        model.get_parameter(trained[0]).mul_(2.0)
    assert_close(model(input_ids=batch(kind)).logits, 2 * before, atol=1e-5, rtol=1e-5)


def test_generation_with_an_adapter(kind, folder):
    """The `generate` of peft does not find its way to ours."""
    model = adapted(AutoModel.from_pretrained(folder), target_modules=["query_key_value"]).eval()
    ids = batch(kind)[:2, :9]
    found = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    assert found.shape == (2, 13)


def test_a_model_with_an_adapter_is_not_quantized(kind, folder):
    """The adapter itself would be quantized, or the layer below it."""
    model = AutoModel.from_pretrained(folder)
    adapted(model, target_modules=["query_key_value"])
    with pytest.raises(UsageError, match="cannot be quantized"):
        model.quantize(8)
