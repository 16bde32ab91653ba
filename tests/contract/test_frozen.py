"""Names that users and checkpoints rely on: changing them must be a decision, not an accident."""

import dataclasses
import inspect
import re

import pytest

import openglm
from openglm.checkpoints.save import WRITERS
from openglm.cli.convert import LAYOUTS
from openglm.cli.main import _run
from openglm.config import ModelConfig
from openglm.engine.engine import Engine, Statistics
from openglm.engine.request import Event
from openglm.engine.writer import Asked
from openglm.language_model import LanguageModel
from openglm.model import build

CONFIG = ModelConfig(
    vocab_size=10,
    hidden_size=8,
    num_layers=1,
    num_attention_heads=2,
    max_position_embeddings=4,
    intermediate_size=32,
)
SAMPLING = {
    "--temperature",
    "--top-k",
    "--top-p",
    "--min-p",
    "--typical-p",
    "--repetition-penalty",
    "--presence-penalty",
    "--frequency-penalty",
    "--no-repeat-ngram-size",
    "--stop",
    "--bad-words",
    "--json-schema",
    "--regex",
    "--grammar",
    "--choice",
    "--n",
    "--best-of",
    "--logprobs",
    "--min-tokens",
    "--max-tokens",
    "--num-beams",
    "--length-penalty",
    "--seed",
    "--tokenizer",
    "--dtype",
    "--device",
    "--json",
}
FLAGS = {
    "demo": {"--json"},
    "fill": SAMPLING,
    "generate": SAMPLING,
    "chat": SAMPLING - {"--json"} | {"--system"},
    "info": {"--json"},
    "doctor": {"--json"},
    "download": {
        "--hub",
        "--revision",
        "--endpoint",
        "--from",
        "--verify",
        "--json",
    },
    "plan": {"--gpus", "--context", "--batch", "--dtype", "--kv-dtype", "--train", "--json"},
    "bench": {
        "--random-weights",
        "--prompt-tokens",
        "--new-tokens",
        "--batch",
        "--repeats",
        "--dtype",
        "--device",
        "--json",
    },
    "verify": {"--golden", "--atol", "--device", "--json"},
    "convert": {"--to", "--tp", "--dtype", "--tokenizer", "--json"},
    "quantize": {
        "--bits",
        "--group-size",
        "--symmetric",
        "--asymmetric",
        "--calibrate",
        "--samples",
        "--act-order",
        "--include",
        "--eval",
        "--no-eval",
        "--tokenizer",
        "--json",
    },
    "serve": {
        "--host",
        "--port",
        "--name",
        "--alias",
        "--tokenizer",
        "--dtype",
        "--device",
        "--memory",
        "--kv-dtype",
        "--max-drafts",
        "--public-name",
        "--origin",
        "--drain-seconds",
        "--legacy",
        "--web-path",
        "--no-web",
        "--no-request-log",
        "--database",
        "--config",
        "--ray",
        "--replicas",
    },
    "keys": set(),
    "keys create": {
        "--role",
        "--rpm",
        "--concurrency",
        "--tokens-per-day",
        "--no-jwt",
        "--database",
        "--json",
    },
    "keys list": {"--database", "--json"},
    "keys revoke": {"--database", "--json"},
    "attack": {
        "--key",
        "--other-key",
        "--model",
        "--only",
        "--log",
        "--any-host",
        "--full",
        "--json",
    },
    "finetune": {
        *("--method", "--run", "--resume", "--preview", "--print-config", "--device", "--json"),
    },
    "pretrain": {"--run", "--resume", "--print-config", "--device", "--json"},
    "version": set(),
}


def test_public_names() -> None:
    """`openglm.__all__` is the promise to users; every name in it must exist."""
    assert openglm.__all__ == [
        "LanguageModel",
        "ModelConfig",
        "OpenGLMError",
        "SamplingParams",
        "__version__",
        "load",
    ]
    for name in openglm.__all__:
        assert getattr(openglm, name) is not None


def test_public_methods_of_the_model() -> None:
    """Methods and their parameter names are called by users' code."""
    signatures = {
        name: list(inspect.signature(method).parameters)[1:]
        for name, method in inspect.getmembers(LanguageModel, inspect.isfunction)
        if not name.startswith("_")
    }
    assert signatures == {
        "chat": ["messages", "sampling"],
        "embed": ["texts"],
        "engine": ["settings"],
        "fill": ["text", "sampling"],
        "generate": ["prompt", "sampling"],
        "generate_batch": ["prompts", "sampling"],
        "logits": ["input_ids", "position_ids", "block_position_ids", "mask", "cache"],
        "new_cache": ["batch_size", "max_length"],
        "request": ["asked", "task", "opening", "sampling"],
        "requests": ["asked", "task", "opening", "fits", "sampling"],
        "score": ["context", "choices", "length_penalty", "unidirectional"],
        "stream": ["prompt", "sampling"],
        "stream_chat": ["messages", "engine", "sampling"],
        "stream_fill": ["text", "sampling"],
    }


def test_public_names_of_the_engine() -> None:
    """Servers are built on these calls and counts."""
    signatures = {
        name: list(inspect.signature(method).parameters)[1:]
        for name, method in inspect.getmembers(Engine, inspect.isfunction)
        if name == "__init__" or not name.startswith("_")
    }
    assert signatures == {
        "__init__": [
            "model",
            "memory_bytes",
            "kv_dtype",
            "max_batch_tokens",
            "max_drafts",
            "draft_model",
            "banned_ids",
            "clock",
        ],
        "add": ["prompt", "params", "rules", "ends", "priority", "tenant", "deadline"],
        "add_reading": ["reading", "priority", "tenant", "deadline"],
        "cancel": ["request_id"],
        "check": ["asked"],
        "check_reading": ["reading"],
        "step": [],
    }
    assert [field.name for field in dataclasses.fields(Statistics)] == [
        "running",
        "waiting",
        "num_pages",
        "free_pages",
        "num_steps",
        "num_tokens",
        "num_prefix_hits",
        "num_preemptions",
        "num_drafted",
        "num_accepted",
    ]
    assert [field.name for field in dataclasses.fields(Event)] == ["request_id", "step", "is_last"]
    assert Asked._fields == ("prompt", "params", "rules", "ends")


def test_state_dict_names() -> None:
    """Our own checkpoints hold these names; renaming one would orphan every saved model."""
    assert list(build(CONFIG).state_dict()) == [
        "word_embeddings.weight",
        "positions.position.weight",
        "positions.block_position.weight",
        "layers.0.input_norm.weight",
        "layers.0.input_norm.bias",
        "layers.0.attention.q_proj.weight",
        "layers.0.attention.q_proj.bias",
        "layers.0.attention.k_proj.weight",
        "layers.0.attention.k_proj.bias",
        "layers.0.attention.v_proj.weight",
        "layers.0.attention.v_proj.bias",
        "layers.0.attention.o_proj.weight",
        "layers.0.attention.o_proj.bias",
        "layers.0.post_attention_norm.weight",
        "layers.0.post_attention_norm.bias",
        "layers.0.mlp.up_proj.weight",
        "layers.0.mlp.up_proj.bias",
        "layers.0.mlp.down_proj.weight",
        "layers.0.mlp.down_proj.bias",
        "final_norm.weight",
        "final_norm.bias",
    ]


def test_layouts_of_convert() -> None:
    """A layout that the library writes cannot be asked for, or the other way round."""
    assert (*WRITERS, "gguf") == LAYOUTS


@pytest.mark.parametrize("verb", FLAGS)
def test_flags(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts use these flags; a new or lost one must be written down here."""
    assert _run([*verb.split(), "--help"], False) == 0
    shown = set(re.findall(r"--[a-z][a-z0-9-]*", capsys.readouterr().out))
    example = {"--train"} if verb in ("pretrain", "finetune") else set()  # in the help of overrides
    assert shown - {"--help"} - example == FLAGS[verb]


def test_every_verb_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """A verb that is not in FLAGS would escape the test above."""
    assert _run(["--help"], False) == 0
    listed = re.findall(r"^│ ([a-z]+) ", capsys.readouterr().out, flags=re.MULTILINE)
    verbs = {verb.split()[0] for verb in FLAGS}
    assert set(listed) - {"default"} >= verbs
    assert set(listed) <= verbs | {"text"}
