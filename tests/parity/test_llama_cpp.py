"""llama.cpp computes from an exported file what our network computes, and reads text as we do.

Needs `pip install llama-cpp-python`, which compiles for minutes and so is no part of `dev`.

llama.cpp rounds the input of every matrix product to suit the matrix: to float16 or bfloat16, and
for Q8_0 and Q4_0 to 8 bits with a scale per 32 columns. These tests round likewise, so that only
the order of sums differs, and float32 products differ by about 1e-6. Where a number lies so near
the border between two steps that this decides how it is rounded, the logits jump, by 0.1 at most
here. In 8 bits and bfloat16 that is rare: most prompts must agree as in float32. In float16, with
steps of 2^-11, it happens in nearly every prompt, but moves the logits by less than 0.01.
"""

from __future__ import annotations

import ctypes
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from helpers_gguf import SENTENCES, causal_config, small_tokenizer, weights_of
from helpers_models import random_model
from openglm.chat import as_messages, prompt_ids
from openglm.chat.jinja import JINJA
from openglm.checkpoints import export_gguf, load_checkpoint
from openglm.language_model import LanguageModel
from openglm.model import build
from openglm.tokenizers import open_tokenizer

llama_cpp = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python")
GOLDENS = Path(__file__).parents[1] / "goldens" / "chatglm"
NETWORKS = ["chatglm2_tiny", "chatglm3_32k_tiny", "glm4_9b_hf_tiny", "glm4_0414_hf_tiny"]
PROMPTS, LENGTH = 16, 12
EXACT = 2e-5
JUMP = {"float32": EXACT, "float16": 0.01, "bfloat16": 0.1, "int8": 0.1, "int4": 0.1}
FILES = {
    "chatglm2": "chatglm2_chatglm3_tokenizer.model",
    "chatglm3": "chatglm2_chatglm3_tokenizer.model",
    "codegeex2": "codegeex2_tokenizer.model",
}
KINDS = [*FILES, "glm4"]
MESSAGES = [
    {"role": "system", "content": "白日依山尽，"},
    {"role": "user", "content": "people of philosophy"},
    {"role": "assistant", "content": "an answer\n\nof paragraphs"},
    {"role": "user", "content": "黄河入海流。"},
]


def rounded_to_blocks(x):
    blocks = gguf.quantize(x.contiguous().numpy(), gguf.GGMLQuantizationType.Q8_0)
    return torch.from_numpy(gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0))


ROUNDED = {
    "float32": lambda x: x,
    "float16": lambda x: x.half().float(),
    "bfloat16": lambda x: x.bfloat16().float(),
    "int8": rounded_to_blocks,
    "int4": rounded_to_blocks,
}


def rounding_inputs(network, dtype):
    """Rounds the input of every matrix product of a network as llama.cpp does; in place."""
    round_ = ROUNDED[dtype]
    for module in network.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: (round_(inputs[0]),))
    head = network.logits
    network.logits = lambda hidden: head(round_(hidden))
    return network


def network_in(path, config):
    network = build(config, "cpu")
    network.load_state_dict(weights_of(path, config))
    return network.eval().requires_grad_(False)


@pytest.fixture
def opened():
    """Opens a file in llama.cpp with keys and values kept in float32, as ours."""
    models = []

    def open_(path, **options):
        cache = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
        options = {"n_ctx": 64, "logits_all": True, "n_threads": 1, "verbose": False} | options
        models.append(llama_cpp.Llama(str(path), **cache | options))
        return models[-1]

    yield open_
    for model in models:
        model.close()


def theirs(model, ids):
    model.reset()
    model.eval(ids.tolist())
    return torch.from_numpy(np.array(model.scores[: len(ids)]))


def differences(model, network):
    """(PROMPTS,) largest differences of logits."""
    ours = LanguageModel(network, None, "")
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(PROMPTS):
        ids = torch.randint(0, network.config.vocab_size, (LENGTH,), generator=generator)
        found.append((theirs(model, ids) - ours.logits(ids[None])[0]).abs().max())
    return torch.stack(found)


@pytest.mark.parametrize("dtype", JUMP)
@pytest.mark.parametrize("name", NETWORKS)
def test_logits(name, dtype, opened, tmp_path):
    """The exported model answers otherwise: other rotation, gate for up, a norm or bias lost.

    The weights are those of the recordings of the official code. ChatGLM2 is compared with exact
    angles: llama.cpp has no half-precision ones.
    """
    loaded = load_checkpoint(GOLDENS / name, exact_rotary=True)
    file = export_gguf(tmp_path, loaded.config, loaded.model.state_dict(), dtype)
    network = rounding_inputs(network_in(file.path, loaded.config), dtype)
    found = differences(opened(file.path), network)
    assert found.max() <= JUMP[dtype]
    if dtype != "float16":
        assert found.median() <= EXACT


@pytest.mark.parametrize("changes", [{"tie_word_embeddings": True}, {"num_key_value_heads": 1}])
def test_other_shapes(changes, opened, tmp_path):
    """A head that is the embedding, or one key head for all, is read as something else.

    These weights are ten times those of a trained model, and so are the differences.
    """
    model = random_model(causal_config(**changes))
    file = export_gguf(tmp_path, model.config, model.state_dict())
    assert differences(opened(file.path), model).max() <= 10 * EXACT


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_greedy_continuation(dtype, opened, tmp_path):
    """Positions or the cache go astray after the prompt."""
    loaded = load_checkpoint(GOLDENS / "chatglm3_32k_tiny")
    file = export_gguf(tmp_path, loaded.config, loaded.model.state_dict(), dtype)
    network = rounding_inputs(network_in(file.path, loaded.config), dtype)
    ours = LanguageModel(network, None, "")
    ids = [7, 8, 9, 10]
    for _ in range(24):
        ids.append(int(ours.logits(torch.tensor([ids]))[0, -1].argmax()))
    stream = opened(file.path).generate(ids[:4], temp=0.0, repeat_penalty=1.0)
    assert [next(stream) for _ in range(24)] == ids[4:]


def vocabulary_file(tokenizer, folder):
    """A file with this tokenizer and the smallest network."""
    config = causal_config(
        vocab_size=tokenizer.vocab_size + 3,
        hidden_size=8,
        num_attention_heads=1,
        num_key_value_heads=1,
        num_layers=1,
        intermediate_size=8,
    )
    model = random_model(config)
    return export_gguf(folder, config, model.state_dict(), tokenizer=tokenizer).path


@pytest.fixture(params=[*KINDS, *(f"official {kind}" for kind in FILES)])
def vocabulary(request, opened, tmp_path):
    """Our tokenizer, and llama.cpp with the same one."""
    kind = request.param.removeprefix("official ")
    if kind == request.param:
        tokenizer = small_tokenizer(kind, tmp_path)
    else:
        folder = request.getfixturevalue("official_tokenizers")
        tokenizer = open_tokenizer(kind, folder / FILES[kind])
    path = vocabulary_file(tokenizer, tmp_path)
    return tokenizer, opened(path, vocab_only=True)


def test_ids_of_texts(vocabulary):
    """The model reads other tokens than it was trained on."""
    tokenizer, model = vocabulary
    sources = [Path(__file__).read_text(encoding="utf-8")]
    sources += [path.read_text(encoding="utf-8") for path in GOLDENS.glob("tokenizer/*.json")]
    texts = [*SENTENCES, "".join(SENTENCES)]
    texts += [text[i : i + 500] for text in sources for i in range(0, min(len(text), 50000), 500)]
    encode = partial(model.tokenize, add_bos=True, special=False)
    for text in texts:
        assert encode(text.encode()) == tokenizer.encode(text), text


def test_prompts_of_chats(vocabulary):
    """The model is asked in another form than it was trained on."""
    tokenizer, model = vocabulary
    if tokenizer.kind == "codegeex2":
        assert "tokenizer.chat_template" not in model.metadata
        prefix = model.tokenize(b"[gMASK]<sop>", add_bos=True, special=True)
        assert prefix == [tokenizer.special.gmask_id, tokenizer.special.sop_id]
        return
    formatter = llama_cpp.llama_chat_format.Jinja2ChatFormatter(
        template=model.metadata["tokenizer.chat_template"], eos_token="", bos_token=""
    )
    prompt = formatter(messages=MESSAGES).prompt.encode()
    found = model.tokenize(prompt, add_bos=True, special=True)
    assert found == prompt_ids(tokenizer, as_messages(MESSAGES))


def test_answers_end(vocabulary):
    """llama.cpp goes on and speaks for the user, or stops at a word."""
    tokenizer, model = vocabulary
    special = tokenizer.special
    ends = {special.get(role).id for role in ("user", "observation") if special.has(role)}
    of_model = llama_cpp.llama_model_get_vocab(model.model)
    ids = range(model.n_vocab())
    found = {i for i in ids if llama_cpp.llama_vocab_is_eog(of_model, i)}
    assert found == {special.eos_id, *ends}


@pytest.mark.parametrize("kind", JINJA)
def test_guess_without_jinja(kind):
    """Where llama.cpp guesses a template, ChatGLM2 is silently asked in another model's form."""
    messages = (llama_cpp.llama_chat_message * 1)()
    messages[0].role, messages[0].content = b"user", b"people"
    buffer = ctypes.create_string_buffer(200)
    size = llama_cpp.llama_chat_apply_template(
        JINJA[kind].encode(), messages, 1, True, buffer, len(buffer)
    )
    if kind == "chatglm2":
        assert size < 0
    else:
        assert buffer.raw[:size] == b"[gMASK]<sop><|user|>\npeople<|assistant|>\n"
