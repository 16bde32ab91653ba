"""Keys and values in pages, by the compiled kernels; the contract is in `paged_attention`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from openglm.kernels.cpu import module
from openglm.kernels.cpu.product import KINDS

if TYPE_CHECKING:
    from openglm.kernels.paged_attention import Pages, Segments

KIND_OF = {torch.float32: KINDS[torch.float32], torch.bfloat16: KINDS[torch.bfloat16]} | {
    torch.int8: KINDS[8]
}


def can_take(x: Tensor, pages: Pages) -> bool:
    """Whether the kernels work on float32 `x` with these pages."""
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    return on_cpu and pages.keys.dtype in KIND_OF and module() is not None


def store(pages: Pages, keys: Tensor, values: Tensor, segments: Segments) -> None:
    """See `paged_attention.store`."""
    if keys.stride() != values.stride() or not _is_whole(keys):
        keys, values = keys.contiguous(), values.contiguous()
    slots = segments.slots.data_ptr(), len(segments.slots)
    _native(pages).store(keys.data_ptr(), values.data_ptr(), keys.stride(0), *slots)


def attend(queries: Tensor, pages: Pages, segments: Segments) -> Tensor:
    """See `paged_attention.attend`."""
    if not _is_whole(queries):
        queries = queries.contiguous()
    out = torch.empty(queries.shape)
    tables = (segments.starts, segments.lengths, segments.visible, segments.pages)
    _native(pages).attend(
        queries.data_ptr(),
        queries.stride(0),
        queries.shape[1],
        *(table.data_ptr() for table in tables),
        *segments.pages.shape,
        out.data_ptr(),
    )
    return out


def _is_whole(x: Tensor) -> bool:
    """Whether the heads of a token stand behind each other; tokens may be apart."""
    return x.stride()[1:] == (x.shape[2], 1)


def _native(pages: Pages) -> Any:
    """The native view of a layer's pages, made once: they never move."""
    if pages.native is None:
        built = module()
        assert built is not None
        tensors = (pages.keys, pages.values, pages.key_scales, pages.value_scales)
        pointers = (0 if tensor is None else tensor.data_ptr() for tensor in tensors)
        pages.native = built.Pages(KIND_OF[pages.keys.dtype], *pages.keys.shape[1:3], *pointers)
    return pages.native
