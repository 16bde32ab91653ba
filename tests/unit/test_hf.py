"""`openglm.hf`: what transformers, peft and old scripts do with the models, on tiny ones."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("transformers")
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DynamicCache,
)

import openglm.hf
from helpers_hf import write_byte_vocabulary, write_folder
from openglm.checkpoints import load_checkpoint
from openglm.errors import CheckpointError, RequestError, UsageError
from openglm.hf.modeling import (
    ChatGLM2ForConditionalGeneration,
    ChatGLMForConditionalGeneration,
)
from openglm.scheme import Scheme

GOLDENS = Path(__file__).parents[1] / "goldens" / "chatglm"
KINDS = ["chatglm", "chatglm2"]
VOCAB = 90
"""Of the tiny networks; see `prompt` for which of the ids are text."""

assert openglm.hf.register


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny official folders by kind; each holds code that must not run."""
    made = {}
    for kind in KINDS:
        made[kind] = tmp_path_factory.mktemp("hf") / kind
        write_folder(made[kind], kind, vocab_size=VOCAB)
    yield made
    for folder in made.values():
        assert not (folder / "the_code_ran").exists()


def prompt(kind, rows=2, length=7):
    """Ids of a batch; of ChatGLM-6B with a blank and sop, as `generate` wants them."""
    ids = torch.randint(4, 80, (rows, length), generator=torch.Generator().manual_seed(3))
    if kind == "chatglm":  # mask, gmask, sop, eop, pad are the last ids, downwards
        ids = torch.cat([ids, torch.tensor([[VOCAB - 2, VOCAB - 3]] * rows)], dim=1)
    return ids


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def model(kind, folders):
    return AutoModelForCausalLM.from_pretrained(folders[kind], trust_remote_code=True)


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM])
def test_every_auto_class_finds_the_model(auto, folders):
    """A script that was written for one of the three `Auto` classes fails, or runs foreign code."""
    classes = (ChatGLMForConditionalGeneration, ChatGLM2ForConditionalGeneration)
    for kind, wanted in zip(KINDS, classes, strict=True):
        for trust in (True, False, None):
            model = auto.from_pretrained(folders[kind], trust_remote_code=trust)
            assert type(model) is wanted


def test_the_state_dict_has_the_official_names_and_values(kind, model, folders):
    """Files written from the model cannot be read by other tools, or hold other numbers."""
    from safetensors.torch import load_file

    stored = load_file(folders[kind] / "model.safetensors")
    found = model.state_dict()
    assert set(found) - set(stored) <= {"lm_head.weight"}  # tied, and so not in the file
    for name, tensor in stored.items():
        assert torch.equal(found[name], tensor), name
    if kind == "chatglm":
        assert model.lm_head.weight is model.transformer.word_embeddings.weight


def test_parameters_are_there_once(kind, model, folders):
    """The weights are in memory twice, or some are not trained."""
    network = model.network
    assert list(network.parameters()) == []
    ours = load_checkpoint(folders[kind]).config.num_parameters
    assert sum(p.numel() for p in model.parameters()) == ours
    assert all(p.requires_grad for p in model.parameters())


def test_saved_and_loaded_again(kind, model, tmp_path):
    """A fine-tuned model that was saved answers otherwise when it is loaded."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
        before = model(prompt(kind)).logits
        model.half().float()
        model.save_pretrained(tmp_path)
        for reread in (AutoModel.from_pretrained(tmp_path), copy.deepcopy(model)):
            assert_close(reread(prompt(kind)).logits, model(prompt(kind)).logits, atol=0, rtol=0)
    assert_close(model(prompt(kind)).logits, before, atol=0.05, rtol=0)  # it went through fp16
    values = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in values
    loaded = load_checkpoint(tmp_path)
    assert loaded.config == model.network.config


def test_the_precision_of_rotary_angles_survives(folders, tmp_path):
    """A model released in fp16 is saved in float32, and its angles become others."""
    folder = tmp_path / "released"
    write_folder(folder, "chatglm2", vocab_size=VOCAB)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(values | {"torch_dtype": "float16"}))
    for options in ({}, {"torch_dtype": torch.float32}, {"dtype": "float32"}):
        model = AutoModel.from_pretrained(folder, **options)
        assert model.network.config.rotary_compute == "float16"
        assert model.dtype == torch.float32  # as stored, or as asked for
        model.save_pretrained(tmp_path / "saved")
        again = AutoModel.from_pretrained(tmp_path / "saved")
        assert again.network.config == model.network.config
    assert AutoModel.from_pretrained(folder, dtype="bfloat16").dtype == torch.bfloat16


def test_fresh_models(kind, folders):
    """`from_config` gives the same weights twice, or a network of other sizes."""
    config = AutoConfig.from_pretrained(folders[kind], trust_remote_code=True)
    assert (config.num_hidden_layers, config.vocab_size, config.hidden_size) == (3, VOCAB, 48)
    first, second = (AutoModelForCausalLM.from_config(config) for _ in range(2))
    weight = "layers.0.mlp.dense_h_to_4h.weight"
    names = [name for name in first.state_dict() if name.endswith(weight)]
    assert len(names) == 1
    assert not torch.equal(first.state_dict()[names[0]], second.state_dict()[names[0]])
    assert first(prompt(kind)).logits.shape[-1] == VOCAB


@pytest.mark.parametrize("num_beams", [1, 3])
def test_the_cache_changes_nothing(kind, model, num_beams):
    """Generation with the cache takes another path; beams get each other's keys."""
    ids = prompt(kind)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    options = {"max_new_tokens": 9, "num_beams": num_beams, "do_sample": False}
    found = [
        model.generate(input_ids=ids, attention_mask=mask, use_cache=use_cache, **options)
        for use_cache in (True, False)
    ]
    assert torch.equal(*found)
    alone = model.generate(ids[1:, 3:], **options)
    assert torch.equal(alone[0], found[0][1, 3 : 3 + alone.shape[1]])


def test_sampling_repeats_with_its_seed(kind, model):
    """Sampling depends on something other than the seed."""
    rows = []
    for _ in range(2):
        torch.manual_seed(5)
        rows.append(model.generate(prompt(kind), max_new_tokens=6, do_sample=True, top_p=0.9))
    assert torch.equal(*rows)


def test_a_cache_that_grows(kind, model):
    """The cache is too small for a long answer, or forgets when it grows."""
    with torch.no_grad():
        ids = prompt(kind, rows=1)
        out = model(ids, use_cache=True)
        tokens = torch.randint(4, 80, (1, 150))
        rows = []
        for place in range(tokens.shape[1]):
            past = out.past_key_values
            out = model(tokens[:, place : place + 1], past_key_values=past)
            rows.append(out.logits[:, -1])
        whole = model(torch.cat([ids, tokens], dim=1)).logits[:, ids.shape[1] :]
    assert past.get_seq_length() == ids.shape[1] + 150
    assert_close(torch.stack(rows, dim=1), whole, atol=1e-4, rtol=1e-4)  # other summation orders


def test_cache_methods(model, kind):
    """Cropping, repeating or selecting rows of a cache loses what it should keep."""
    with torch.no_grad():
        ids = prompt(kind)
        cache = model(ids, use_cache=True).past_key_values
        after = torch.tensor([[11], [12]])
        expected = model(after, past_key_values=copy.deepcopy(cache)).logits
        cache.batch_repeat_interleave(2)
        model(torch.full((4, 3), 9), past_key_values=cache)
        cache.crop(-3)
        cache.batch_select_indices(torch.tensor([3, 0]))
        assert (cache.batch_size, len(cache), cache.get_max_length()) == (2, 3, -1)
        found = model(after[[1, 0]], past_key_values=cache).logits
    assert_close(found, expected[[1, 0]], atol=1e-5, rtol=1e-5)
    cache.reset()
    assert cache.get_seq_length() == 0


def test_training_lowers_the_loss(kind, model):
    """Gradients do not reach the fused layers."""
    ids = prompt(kind, rows=4)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(10):
        loss = model(ids, labels=ids).loss
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_gradient_checkpointing(kind, model):
    """Checkpointing is switched on without effect, or changes gradients."""
    ids = prompt(kind)

    def gradients():
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    model.train()
    plain = gradients()
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    calls = []
    layer = model.transformer.blocks()[0]
    layer.block.register_forward_pre_hook(lambda *_: calls.append(1))
    for found, expected in zip(gradients(), plain, strict=True):
        assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert len(calls) == 2, "the block is not computed again on the way back"
    assert model(ids, use_cache=True).past_key_values is None
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing


def test_input_gradients_for_adapters(kind, model):
    """Under checkpointing with frozen weights, gradients stop at the embedding."""
    model.requires_grad_(False)
    model.enable_input_require_grads()
    assert model(prompt(kind)).logits.requires_grad
    model.disable_input_require_grads()
    assert not model(prompt(kind)).logits.requires_grad


@pytest.mark.parametrize("bits", [8, 4])
def test_quantize(kind, model, bits, tmp_path, folders):
    """`.quantize(4)` of old scripts changes nothing, or cannot be saved."""
    plain = model(prompt(kind)).logits
    assert model.quantize(bits) is model
    assert model.quantize(bits) is model
    with pytest.raises(UsageError, match="cannot be brought"):
        model.quantize(12 - bits)
    with pytest.raises(UsageError, match="8 or 4"):
        model.quantize(3)
    quantized = model(prompt(kind)).logits
    assert not torch.equal(plain, quantized)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert_close(again(prompt(kind)).logits, quantized, atol=0, rtol=0)
    ours = load_checkpoint(folders[kind], scheme=Scheme(bits=bits))
    for name, tensor in model.state_dict().items():
        if name.endswith("layers.0.mlp.dense_4h_to_h.weight"):
            assert torch.equal(tensor, ours.model.layers[0].mlp.down_proj.weight)


def test_glm4_chats_without_any_official_file(tmp_path):
    """The README's way of an old script, end to end, in the layout of GLM-4-9B's own code."""
    folder = tmp_path / "glm-4-9b-chat"
    marker = write_folder(folder, "chatglm3", vocab_size=288)
    write_byte_vocabulary(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).float().eval()
    torch.manual_seed(0)
    response, history = model.chat(tokenizer, "你好", history=[], max_length=40)
    assert isinstance(response, str)
    assert history[0] == {"role": "user", "content": "你好"}
    assert [turn["role"] for turn in history[1:]] == ["assistant"] * len(history[1:])
    before = copy.deepcopy(history)
    for streamed, longer in model.stream_chat(tokenizer, "?", history=history, max_length=160):
        assert longer[: len(before)] == before
        assert isinstance(streamed, str)
    assert history == before, "the caller's list was changed"
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}],
        add_generation_prompt=True,
        tokenize=True,
        return_tensors="pt",
        return_dict=True,
    )
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == "[gMASK]<sop><|user|>\nhi"
    assert tokenizer.decode(asked["input_ids"][0]) == f"{text}<|assistant|>"
    outputs = model.generate(**asked, max_length=30, do_sample=False)
    assert tokenizer.batch_decode(outputs)[0].startswith(text)
    inputs = tokenizer(["a", "bcd"], return_tensors="pt", padding=True)
    assert model.generate(**inputs, max_length=12, do_sample=False).shape == (2, 12)
    tokenizer.save_pretrained(tmp_path / "saved")
    model.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert again("bcd")["input_ids"] == tokenizer("bcd")["input_ids"]
    assert not marker.exists()


def test_a_tokenizer_that_needs_its_own_code_is_refused(folders, tmp_path):
    """The tokenizer's code is run after all, since its class has another name."""
    folder = tmp_path / "evil"
    marker = write_folder(folder, "chatglm2", vocab_size=VOCAB)
    path = folder / "tokenizer_config.json"
    declared = json.loads(path.read_text(encoding="utf-8"))
    for change in ({"tokenizer_class": "EvilTokenizer"}, {"tokenizer_class": "BertTokenizer"}, {}):
        kept = {key: value for key, value in declared.items() if key != "tokenizer_class"}
        path.write_text(json.dumps(kept | change))
        for auto in (AutoTokenizer, AutoModel, AutoConfig):
            with pytest.raises(CheckpointError, match="no code from a checkpoint is run"):
                auto.from_pretrained(folder, trust_remote_code=True)
    assert not marker.exists()


def test_glm4_stays_native(tmp_path):
    """The model type `glm` of transformers itself becomes something else by our import."""
    native = AutoModelForCausalLM.from_pretrained(GOLDENS / "glm4_9b_hf_tiny")
    assert type(native).__module__ == "transformers.models.glm.modeling_glm"
    assert type(AutoConfig.for_model("glm")).__name__ == "GlmConfig"


def test_the_first_glm_is_refused(tmp_path):
    """GLM of 2021 is read as a GLM-4 with random weights, or by code in its folder."""
    source = GOLDENS.parent / "glm" / "hf"
    values = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": "glm"}))
    marker = add_glm_code(tmp_path)
    for auto in (AutoConfig, AutoModel, AutoModelForSeq2SeqLM):
        with pytest.raises(CheckpointError, match="a GLM of 2021"):
            auto.from_pretrained(tmp_path, trust_remote_code=True)
    assert not marker.exists()


def add_glm_code(folder):
    from helpers_hf import add_code

    return add_code(folder)


def test_what_cannot_be_honoured_is_said(kind, model, folders):
    """An argument is accepted and ignored."""
    ids = prompt(kind)
    for options in (
        {"output_attentions": True},
        {"inputs_embeds": torch.zeros(1, 2, 48)},
        {"past_key_values": DynamicCache()},
        {"attention_mask": torch.ones(2, 3)},
    ):
        with pytest.raises(RequestError):
            model(ids, **options)
    with pytest.raises(RequestError, match="cache_implementation"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static")
    for options, said in (
        ({"load_in_8bit": True}, r"\.quantize\(8\)"),
        ({"device_map": {"a": "cpu", "b": "cuda:0"}}, "spreads the model"),
        ({"strange": 1}, "strange"),
    ):
        with pytest.raises(UsageError, match=said):
            AutoModel.from_pretrained(folders[kind], **options)
    config = AutoConfig.from_pretrained(folders[kind])
    config.num_layers = 2
    with pytest.raises(CheckpointError, match="another network"):
        AutoModel.from_pretrained(folders[kind], config=config)
    config = AutoConfig.from_pretrained(folders[kind])
    config.pre_seq_len = 8
    with pytest.raises(UsageError, match="prefix="):
        AutoModel.from_pretrained(folders[kind], config=config)


def test_openglm_itself_needs_no_transformers():
    """`import openglm`, or a model's load, becomes slow or fails without the extra."""
    code = (
        "import sys, openglm, openglm.loading\n"
        "assert 'transformers' not in sys.modules and 'openglm.hf' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_transformers_the_message_says_what_to_install():
    """Whoever forgot the extra gets a bare ImportError."""
    code = (
        "import sys\n"
        "sys.modules['transformers'] = None\n"
        "from openglm.errors import UsageError\n"
        "try:\n"
        "    import openglm.hf\n"
        "except UsageError as error:\n"
        "    assert \"pip install '.[hf]'\" in error.hint\n"
        "else:\n"
        "    raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_model_of_the_hub(kind, folders, tmp_path, monkeypatch):
    """A name of the hub loads code, or is not found among the downloaded files."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--THUDM--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(folders[kind], target_is_directory=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    model = AutoModel.from_pretrained(
        "THUDM/tiny", trust_remote_code=True, cache_dir=tmp_path / "hub", local_files_only=True
    )
    expected = AutoModel.from_pretrained(folders[kind])
    assert torch.equal(model(prompt(kind)).logits, expected(prompt(kind)).logits)
