"""Export to GGUF, the one-file format that llama.cpp and Ollama run.

    chatglm    ChatGLM2, ChatGLM3, CodeGeeX2, GLM-4-9B
    glm4       GLM-4-0414: a norm behind attention and MLP as well

These two architectures of llama.cpp compute what our network computes: neighbouring elements turn
together, over the first `rope.dimension_count` of a head; `attn_qkv` holds [q; k; v], `ffn_up`
[gate; up]. Source: its src/models/chatglm.cpp, src/models/glm4.cpp, and `llama_model_rope_type`.
Its angles are always float32. Nothing here reads GGUF: this is an export, not a checkpoint layout.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from openglm.checkpoints.gguf_vocab import add_vocabulary
from openglm.checkpoints.maps import NameMap, Row
from openglm.checkpoints.maps.table import SCALE
from openglm.checkpoints.save import FLOATS_HINT, check_weights
from openglm.config import ModelConfig
from openglm.errors import CheckpointError, UsageError, suggest
from openglm.log import logger
from openglm.model import build
from openglm.quant.rowwise import dequantize_rows
from openglm.tokenizers import Tokenizer

if TYPE_CHECKING:
    import gguf

SUFFIX = ".gguf"
TYPES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int8": "Q8_0",
    "int4": "Q4_0",
}
"""Our name of a dtype -> GGUF's type of the matrices."""
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
QUANTIZED = ("Q8_0", "Q4_0")
BLOCK = 32
"""Columns that share a scale in them."""
REQUIRED: dict[str, Any] = {
    "position": "rotary",
    "rotary_pairing": "interleaved",
    "norm": "rmsnorm",
    "activation": "swiglu",
    "context": "explicit",
    "linear_bias": False,
    "top_query": False,
}
"""What both architectures have built in."""
ARCHITECTURES = {"pre": "chatglm", "sandwich": "glm4"}
"""`residual` of a network -> architecture."""
HEAD, WORDS = "output.weight", "token_embd.weight"


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written, and GGUF's name for the type of its matrices."""

    path: Path
    type: str


def export_gguf(
    target: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    dtype: str = "auto",
    *,
    tokenizer: Tokenizer | None = None,
    name: str = "model",
) -> Exported:
    """Writes a network and its tokenizer as one GGUF file.

    Memory: besides `weights`, the largest tensor in float32; tensors are written one by one.

    Args:
        target: a new file if it ends in .gguf, else a folder, which gets NAME-TYPE.gguf.
        config: the architecture.
        weights: every parameter of the network by our name, as stored.
        dtype: of the matrices: float32, float16, bfloat16, int8 (Q8_0), int4 (Q4_0); auto = as
            stored. Norms and biases are float32. With int4 the output head is Q8_0. A matrix
            whose rows are no multiple of 32 wide cannot be Q8_0 or Q4_0, and becomes float16.
        tokenizer: becomes part of the file; without one, llama.cpp takes and gives only ids.
        name: of the model.

    Raises:
        UsageError: unknown dtype, group-wise weights, or the package `gguf` is missing.
        CheckpointError: llama.cpp does not know such a network, weights are missing, or the file
            exists.
        TokenizerError: llama.cpp does not know such a tokenizer, or it is of another model.
    """
    scheme = check_weights(config, weights)
    if scheme is not None and not scheme.is_official:
        raise UsageError(f"{scheme.name} weights cannot be written as GGUF", hint=FLOATS_HINT)
    gguf, arch = import_gguf(), architecture(config)
    bits = scheme.bits if scheme else 0
    matrices = _matrix_type(dtype, weights)
    path = target if target.suffix == SUFFIX else target / f"{name}-{matrices}{SUFFIX}"
    if os.path.lexists(path):
        raise CheckpointError(f"{path} exists already", hint="name a new file")
    if bits and matrices in QUANTIZED:
        logger.warning(
            "the official %d-bit weights are quantized again, to %s; float16 would keep them",
            bits,
            matrices,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        building = Path(folder) / path.name
        with closing(gguf.GGUFWriter(building, arch)) as writer:
            _describe(writer, config, matrices, name)
            add_vocabulary(writer, tokenizer, config.vocab_size)
            _write_tensors(writer, config, weights, matrices, bits)
        os.rename(building, path)
    return Exported(path, matrices)


def architecture(config: ModelConfig) -> str:
    """llama.cpp's name for a network; `CheckpointError` if it has none."""
    values = config.to_dict()
    strange = {key: values[key] for key, needed in REQUIRED.items() if values[key] != needed}
    if config.residual not in ARCHITECTURES:
        strange["residual"] = config.residual
    if strange:
        found = ", ".join(f"{key}={value}" for key, value in strange.items())
        raise CheckpointError(
            f"llama.cpp cannot run this network, which has {found}",
            hint="it runs ChatGLM2, ChatGLM3, CodeGeeX2, GLM-4-9B and GLM-4-0414; "
            "the others run here, with `glm generate`",
        )
    return ARCHITECTURES[config.residual]


def rows(config: ModelConfig) -> tuple[Row, ...]:
    """The name map of one network."""
    theirs, ours = "blk.{i}.", "layers.{i}."
    attention, mlp = ours + "attention.", ours + "mlp."
    sandwich = (
        Row(theirs + "post_attention_norm.weight", (ours + "attention_output_norm.weight",)),
        Row(theirs + "post_ffw_norm.weight", (ours + "mlp_output_norm.weight",)),
    )
    return (
        Row(WORDS, ("word_embeddings.weight",)),
        # llama.cpp takes the embedding for the head if there is none.
        *(() if config.tie_word_embeddings else (Row(HEAD, ("lm_head.weight",)),)),
        Row("output_norm.weight", ("final_norm.weight",)),
        Row(theirs + "attn_norm.weight", (ours + "input_norm.weight",)),
        *(
            Row(f"{theirs}attn_qkv.{leaf}", tuple(f"{attention}{x}_proj.{leaf}" for x in "qkv"))
            for leaf in (("weight", "bias") if config.qkv_bias else ("weight",))
        ),
        Row(theirs + "attn_output.weight", (attention + "o_proj.weight",)),
        Row(theirs + "ffn_norm.weight", (ours + "post_attention_norm.weight",)),
        Row(theirs + "ffn_up.weight", (mlp + "gate_proj.weight", mlp + "up_proj.weight")),
        Row(theirs + "ffn_down.weight", (mlp + "down_proj.weight",)),
        *(sandwich if config.residual == "sandwich" else ()),
    )


def import_gguf() -> Any:
    """The package `gguf`, an extra."""
    try:
        import gguf
    except ImportError as error:
        raise UsageError(
            "writing GGUF needs the package gguf, which is not installed",
            hint="pip install '.[gguf]'",
        ) from error
    return gguf


def _matrix_type(dtype: str, weights: Mapping[str, Tensor]) -> str:
    """GGUF's type of the matrices; "auto" is that of the embedding, which is never quantized."""
    if dtype == "auto":
        dtype = str(weights["word_embeddings.weight"].dtype).removeprefix("torch.")
    if dtype not in TYPES:
        raise UsageError(f"unknown dtype {dtype!r}", hint=suggest(dtype, ("auto", *TYPES)))
    return TYPES[dtype]


def _describe(writer: gguf.GGUFWriter, config: ModelConfig, matrices: str, name: str) -> None:
    gguf = import_gguf()
    file_type = "ALL_F32" if matrices == "F32" else f"MOSTLY_{matrices}"
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.rotary_width)
    writer.add_rope_freq_base(config.rope_theta)


def _write_tensors(
    writer: gguf.GGUFWriter,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    matrices: str,
    bits: int,
) -> None:
    """Writes the table of contents, then each tensor as soon as it is made."""
    import numpy as np

    gguf = import_gguf()
    shapes = {name: tuple(p.shape) for name, p in build(config).named_parameters()}
    table = NameMap(rows(config)).expand(config.num_layers)
    kinds = {}
    for name, row in table.items():
        shape = row.shape([shapes[target] for target in row.targets], num_ranks=1)
        kinds[name] = kind = gguf.GGMLQuantizationType[_type(config, name, shape, matrices)]
        in_bytes = gguf.quant_shape_to_byte_shape(shape, kind)
        writer.add_tensor_info(name, in_bytes, np.dtype(np.uint8), math.prod(in_bytes), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, row in table.items():
        tensor = row.write([_plain(weights, target, bits) for target in row.targets], 0, 1)
        if kinds[name].name in FLOATS:
            stored = tensor.to(FLOATS[kinds[name].name]).view(torch.uint8).numpy()
        else:
            stored = gguf.quantize(tensor.float().numpy(), kinds[name])
        writer.write_tensor_data(stored)


def _type(config: ModelConfig, name: str, shape: tuple[int, ...], matrices: str) -> str:
    """The type of one tensor, by the rules of llama.cpp's own quantizer.

    That one makes the head of a Q4_0 model Q6_K, which the package cannot write; Q8_0 is the next
    better one.
    """
    if len(shape) == 1:
        return "F32"
    if matrices not in QUANTIZED:
        return matrices
    if shape[-1] % BLOCK:
        logger.warning("%s is %d wide, no multiple of %d: it is float16", name, shape[-1], BLOCK)
        return "F16"
    is_head = name == (WORDS if config.tie_word_embeddings else HEAD)
    return "Q8_0" if is_head else matrices


def _plain(weights: Mapping[str, Tensor], name: str, bits: int) -> Tensor:
    """A parameter in floating point; official integers times their scale, exact in float32."""
    tensor, scale = weights[name], weights.get(name + SCALE)
    return tensor if scale is None else dequantize_rows(tensor, scale, bits, torch.float32)
