"""The Triton kernels compile for real GPUs, which needs none: the interpreter accepts more.

Run by `make test-triton`, in a process without TRITON_INTERPRET.
"""

from __future__ import annotations

from typing import Any

import pytest

from openglm.kernels.gpu.available import is_interpreted

triton = pytest.importorskip("triton", reason="Triton is not installed; see `make test-triton`")
if is_interpreted():
    pytest.skip("an interpreted kernel cannot be compiled", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from openglm.kernels.gpu import decode_attention, packed_linear, paged_attention  # noqa: E402

CAPABILITIES = [80, 90]
"""A100 and H100: the tensor cores of the second are driven by other instructions."""
PRODUCT = ["*bf16", "*i32", "*fp16", "*fp16", "*bf16", "*bf16", *["i32"] * 6]
FORMS = {"HAS_MINIMUM": True, "HAS_BIAS": True, "SPLITS": 1}


def _compile(kernel: Any, types: list[str], constants: dict[str, Any], capability: int) -> str:
    """The assembly of a kernel whose other arguments, in order, have the types `types`."""
    plain = iter(types)
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else next(plain) for name in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"enable_fp_fusion": True})
    assembly: str = compiled.asm["ptx"]
    return assembly


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("bits", [4, 8])
def test_products_compile(bits: int, capability: int) -> None:
    """A GPU would refuse what the interpreter let pass, at the first token."""
    sizes = {"BITS": bits, "BLOCK_M": 4, "BLOCK_S": 64}
    assert "fma.rn.f32" in _compile(packed_linear.few_rows, PRODUCT, FORMS | sizes, capability)
    sizes = {"BITS": bits, "BLOCK_M": 64, "BLOCK_S": 2 * bits, "BLOCK_N": 64, "WIDENED": False}
    assembly = _compile(packed_linear.many_rows, PRODUCT, FORMS | sizes, capability)
    assert ("wgmma" if capability == 90 else "mma.sync") in assembly


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_decode_attention_compiles(capability: int) -> None:
    """See `test_products_compile`."""
    heads = {"NUM_HEADS": 32, "KEY_HEADS": 2, "WIDTH": 128, "TILE": 16, "BLOCK_S": 64}
    types = [*["*bf16"] * 3, "*i64", *["*fp32"] * 3, "fp32", "i32", "i32"]
    constants = heads | {"PARTS": 32, "WIDENED": False}
    assert "mma.sync" in _compile(decode_attention.attend_part, types, constants, capability)
    types, constants = [*["*fp32"] * 3, "*bf16"], {"WIDTH": 128, "PARTS": 32}
    _compile(decode_attention.join_parts, types, constants, capability)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("stored", ["*bf16", "*i8"])
@pytest.mark.parametrize(("queries", "parts"), [(1, 32), (4, 1)])
def test_paged_attention_compiles(queries: int, parts: int, stored: str, capability: int) -> None:
    """See `test_products_compile`."""
    is_int8 = stored == "*i8"
    sizes = {"NUM_HEADS": 32, "KEY_HEADS": 2, "WIDTH": 128, "QUERIES": queries, "HEADS": 16}
    forms = {"PAGE": 32, "PARTS": parts, "INT8": is_int8, "WIDENED": False}
    scales = "*fp32" if is_int8 else stored
    result = "*bf16" if parts == 1 else "*fp32"
    types = ["*bf16", *[stored] * 2, *[scales] * 2, *["*i32"] * 2, *[result] * 3, "fp32", "i32"]
    assembly = _compile(paged_attention.attend_tile, types, sizes | forms, capability)
    assert ("wgmma" if capability == 90 and queries > 1 else "mma.sync") in assembly
