"""Kernels for GPUs: Triton for quantized weights, FlexAttention for prefix masks."""
