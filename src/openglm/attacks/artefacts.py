"""Attacks through checkpoints that come from strangers: tried on the openglm that runs this.

A server reads checkpoints that its operator chose, never those of its clients. So nothing is sent
here: these rows say whether an operator may try a folder from the internet.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from openglm.attacks.target import Target
from openglm.checkpoints import load_checkpoint, save_checkpoint
from openglm.config import ModelConfig
from openglm.errors import OpenGLMError
from openglm.model import build
from openglm.tokenizers import find_tokenizer

WEIGHTS, CONFIG, RANK = "model.safetensors", "config.json", "mp_rank_00_model_states.pt"
SIZES = ("num_layers", "hidden_size", "vocab_size", "num_attention_heads")
IMPOSSIBLE = (0, -1, 10**9, 2**70, 1.5, "4", None, [4], True, math.nan)
DATA = bytes(64)
CODE = "import pathlib\npathlib.Path({mark!r}).touch()\n"
"""What hostile files would run: it leaves a mark."""


class Touch:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def pickles(target: Target) -> Iterator[str]:
    """M1."""
    weight = {"a": torch.zeros(1)}
    for is_zip in (True, False):
        for what in ("in the place of weights", "deep inside", "beside the weights", "as a key"):
            with _folder() as (folder, mark):
                contents: dict[str, Any] = {
                    "in the place of weights": {"module": Touch(mark)},
                    "deep inside": {"module": {"language_model": {"embedding": [Touch(mark)]}}},
                    "beside the weights": {"module": weight, "rng_state": Touch(mark)},
                    "as a key": {"module": {Touch(mark): weight}},
                }
                (folder / WEIGHTS).unlink()
                torch.save(contents[what], folder / RANK, _use_new_zipfile_serialization=is_zip)
                form = "a zip" if is_zip else "the old form"
                yield from _refused(f"a pickle in {form} with a program {what}", folder, mark)


def headers(target: Target) -> Iterator[str]:
    """M2."""
    for what, (header, length) in _headers().items():
        with _folder() as (folder, mark):
            text = header if isinstance(header, bytes) else json.dumps(header).encode()
            size = struct.pack("<Q", len(text) if length is None else length)
            (folder / WEIGHTS).write_bytes(size + text + DATA)
            yield from _refused(f"safetensors with {what}", folder, mark)


def sparse_tensors(target: Target) -> Iterator[str]:
    """M3: indices of a sparse tensor may point anywhere."""
    indices, values = torch.tensor([[10**9], [-1]]), torch.ones(1)
    wrong = torch.sparse_coo_tensor(indices, values, (60, 24), check_invariants=False)
    with _folder() as (folder, mark):
        (folder / WEIGHTS).unlink()
        torch.save({"module": {"word_embeddings.weight": wrong}}, folder / RANK)
        yield from _refused("a sparse tensor", folder, mark)


def code_beside_weights(target: Target) -> Iterator[str]:
    """M4: what `trust_remote_code` runs elsewhere."""
    with _folder() as (folder, mark):
        config = json.loads((folder / CONFIG).read_text())
        named = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
        (folder / CONFIG).write_text(json.dumps(config | {"auto_map": named}))
        template = "{{ ''.__class__ }}{% for i in range(10**9) %}{% endfor %}"
        told = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "chat_template": template}
        (folder / "tokenizer_config.json").write_text(json.dumps(told))
        for name in ("evil.py", "__init__.py", "modeling_chatglm.py", "tokenization_chatglm.py"):
            (folder / name).write_text(CODE.format(mark=str(mark)))
        with contextlib.suppress(OpenGLMError):  # to refuse such a folder is safe, too
            load_checkpoint(folder)
            find_tokenizer(folder)
        if mark.exists():
            yield "code beside the weights was run"


def impossible_sizes(target: Target) -> Iterator[str]:
    """M5."""
    for size in SIZES:
        for value in IMPOSSIBLE:
            with _folder() as (folder, mark):
                config = json.loads((folder / CONFIG).read_text())
                (folder / CONFIG).write_text(json.dumps(config | {size: value}))
                yield from _refused(f"{size}={value}", folder, mark)


def _refused(what: str, folder: Path, mark: Path) -> Iterator[str]:
    """Says so if a folder is loaded, or ends in anything but an error that says why."""
    try:
        load_checkpoint(folder)
    except OpenGLMError:
        pass
    except Exception as error:
        yield f"{what}: {type(error).__name__}: {error}"[:200]
    else:
        yield f"{what}: it was loaded"
    if mark.exists():
        yield f"{what}: the program was run"


@contextmanager
def _folder() -> Iterator[tuple[Path, Path]]:
    """A small checkpoint to be spoiled, and where programs leave their mark."""
    config = ModelConfig(
        vocab_size=60, hidden_size=24, num_layers=2, num_attention_heads=4,
        max_position_embeddings=40, intermediate_size=96,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        weights = {key: torch.zeros(at.shape) for key, at in build(config).state_dict().items()}
        save_checkpoint(folder, config, weights, "hf")
        yield folder, Path(name) / "mark"


def _headers() -> dict[str, tuple[object, int | None]]:
    """Headers of safetensors by what is wrong with them, each with the length it claims to have."""

    def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
        return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}

    one = json.dumps(entry(0, 16, [4]))
    return {
        "a header of 8 exabytes": (b"{}", 2**63 - 1),
        "a header of all bytes there are": (b"{}", 2**64 - 1),
        "half a header": (b"{", None),
        "a list as header": (b"[]", None),
        "a header of no text": (b"\xff\xfe{}", None),
        "overlapping tensors": ({"a": entry(0, 16, [4]), "b": entry(8, 24, [4])}, None),
        "a tensor behind the end": ({"a": entry(0, 4096, [1024])}, None),
        "a tensor that ends before it begins": ({"a": entry(16, 0, [4])}, None),
        "a size that overflows": ({"a": entry(0, 16, [2**62, 2**62])}, None),
        "a shape of another size": ({"a": entry(0, 16, [5])}, None),
        "an unknown dtype": ({"a": entry(0, 16, [4], "F31")}, None),
        "a negative size": ({"a": entry(0, 16, [-4])}, None),
        "a hole": ({"a": entry(4, 20, [4])}, None),
        "a name twice": (f'{{"a": {one}, "a": {one}}}'.encode(), None),
    }
