"""Folders as the old scripts know them: official names, tiny weights, code that must never run."""

from __future__ import annotations

import json
from pathlib import Path

from helpers_models import random_model, tiny_config

EVIL = "from pathlib import Path\nPath({marker!r}).write_text('the code in the folder was run')\n"
AUTO_MAP = {
    "AutoConfig": "configuration_chatglm.ChatGLMConfig",
    "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForSeq2SeqLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
}
CAUSAL = {
    "hidden_size": 48,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "position": "rotary",
    "rotary_dim": 4,
    "rotary_pairing": "interleaved",
    "norm": "rmsnorm",
    "activation": "swiglu",
    "linear_bias": False,
    "tie_word_embeddings": False,
    "embedding_dropout": 0.0,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "max_position_embeddings": 256,
}
PREFIX = {
    "hidden_size": 48,
    "position": "rotary_2d",
    "rotary_frequencies": "float16",
    "context": "until_sop",
    "residual": "deepnorm",
    "residual_scale": 56**0.5,
    "activation": "gelu_tanh",
    "embedding_dropout": 0.0,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "max_position_embeddings": 256,
}
VOCABULARIES = {
    "chatglm": ("chatglm6b_ice_text.model", "ice_text.model", 130528),
    "chatglm2": ("chatglm2_chatglm3_tokenizer.model", "tokenizer.model", 65024),
    "chatglm3": ("chatglm2_chatglm3_tokenizer.model", "tokenizer.model", 65024),
    "codegeex2": ("codegeex2_tokenizer.model", "tokenizer.model", 65024),
}
TOKENS = {
    "chatglm": {"mask": 130000, "gmask": 130001, "sop": 130004, "eop": 130005, "pad": 3},
    "chatglm2": {"eos": 2, "pad": 0},
}


def network_config(kind: str, vocab_size: int):
    """A tiny architecture in the layout of a kind of tokenizer's models."""
    if kind == "chatglm":
        return tiny_config(vocab_size=vocab_size, **PREFIX)
    exact = {} if kind == "chatglm3" else {"rotary_frequencies": "as_compute"}
    return tiny_config(vocab_size=vocab_size, **CAUSAL | exact)


def write_folder(folder: Path, kind: str, tokenizers: Path | None = None, vocab_size: int = 0):
    """An official folder with random weights, with its vocabulary if there is one.

    Returns:
        The marker file that the code in the folder would write.
    """
    source, name, rows = VOCABULARIES[kind]
    config = network_config(kind, vocab_size or rows)
    tokens = TOKENS.get(kind, TOKENS["chatglm2"])
    if vocab_size:
        tokens = {role: vocab_size - 1 - n for n, role in enumerate(tokens)}
    write_official(folder, config, tokens)
    if tokenizers is not None:
        (folder / name).write_bytes((tokenizers / source).read_bytes())
    return add_code(folder)


def write_official(folder: Path, config, tokens) -> None:
    """Weights under the names of the official code, whatever else could hold them."""
    from openglm.checkpoints.maps import chatglm, chatglm2

    family = chatglm.FAMILY if config.residual == "deepnorm" else chatglm2.FAMILY
    network = random_model(config)
    folder.mkdir(parents=True)
    values = family.to_json(config) | family.token_json(tokens)
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    names = family.name_map(config).expand(config.num_layers)
    weights = network.state_dict()
    tensors = {
        name: row.write([weights[target] for target in row.targets], 0, 1)
        for name, row in names.items()
        if row.targets
    }
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors")


def add_code(folder: Path) -> Path:
    """Puts code beside the weights, and asks for it as the official folders do."""
    marker = folder / "the_code_ran"
    for module in ("configuration_chatglm", "modeling_chatglm", "tokenization_chatglm"):
        (folder / f"{module}.py").write_text(EVIL.format(marker=str(marker)), encoding="utf-8")
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(values | {"auto_map": AUTO_MAP}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "ChatGLMTokenizer",
                "remove_space": False,
                "do_lower_case": False,
                "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
            }
        )
    )
    return marker


def write_byte_vocabulary(folder: Path) -> None:
    """A vocabulary of GLM-4 that needs no official file: its tokens are the 256 bytes."""
    from base64 import b64encode

    lines = (f"{b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
    (folder / "tokenizer.model").write_text("".join(lines), encoding="ascii")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "ChatGLM4Tokenizer",
                "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLM4Tokenizer", None]},
                "eos_token": "<|endoftext|>",
                "chat_template": "{{ 'the template of the official code' }}",
                "added_tokens_decoder": {"256": {"content": "<|endoftext|>", "special": True}},
            }
        )
    )
